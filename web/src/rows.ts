/** A view that comes row by row: asked for when its path changes, and no longer when nobody looks at it. */
import type { ReactiveController, ReactiveElement } from "lit";
import { Refused } from "./transport.js";
import type { Session } from "./session.js";

type Host = ReactiveElement & { session: Session };

/** `row` hears each row as it comes, with its number; `done` the whole view, also where it came at once. */
export class Rows<Row, Whole> implements ReactiveController {
  error: Refused | null = null;
  #path: string | null = null;
  #work: AbortController | null = null;

  constructor(
    private readonly host: Host,
    private readonly path: () => string | null,
    private readonly row: (row: Row, i: number) => void,
    private readonly done: (whole: Whole) => void,
  ) {
    host.addController(this);
  }

  hostUpdate(): void {
    if (!this.host.isConnected) return; // an update that was still to come when it was left
    const path = this.path();
    if (path === this.#path) return;
    this.#path = path;
    this.error = null;
    this.#work?.abort(); // the server stops before its next row
    this.#work = path === null ? null : new AbortController();
    if (path !== null && this.#work) void this.#listen(path, this.#work);
  }

  hostDisconnected(): void {
    this.#work?.abort();
    this.#work = this.#path = null;
  }

  async #listen(path: string, work: AbortController): Promise<void> {
    let i = 0;
    try {
      for await (const { event, data } of this.host.session.rows(path, work.signal)) {
        if (work !== this.#work) return;
        if (event === "row") this.row(data as Row, i++);
        if (event === "done") this.done(data as Whole);
        this.host.requestUpdate();
      }
    } catch (error) {
      if (work !== this.#work) return;
      this.error = error instanceof Refused ? error : new Refused(String(error), 0);
      this.host.requestUpdate();
    }
  }
}
