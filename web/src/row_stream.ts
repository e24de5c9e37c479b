/** Reactive controller that streams a view row by row, and aborts when the element disconnects. */
import type { ReactiveController, ReactiveElement } from "lit";
import { ApiError } from "./transport.js";
import type { Session } from "./session.js";

type Host = ReactiveElement & { session: Session };

/** `row` receives each row with its index; `done` receives the complete view. */
export class RowStream<Row, Whole> implements ReactiveController {
  error: ApiError | null = null;
  #path: string | null = null;
  #abort: AbortController | null = null;

  constructor(
    private readonly host: Host,
    private readonly path: () => string | null,
    private readonly row: (row: Row, i: number) => void,
    private readonly done: (whole: Whole) => void,
  ) {
    host.addController(this);
  }

  hostUpdate(): void {
    if (!this.host.isConnected) return; // a pending update after the disconnect
    const path = this.path();
    if (path === this.#path) return;
    this.#path = path;
    this.error = null;
    this.#abort?.abort(); // the server stops before the next row
    this.#abort = path === null ? null : new AbortController();
    if (path !== null && this.#abort) void this.#receive(path, this.#abort);
  }

  hostDisconnected(): void {
    this.#abort?.abort();
    this.#abort = this.#path = null;
  }

  async #receive(path: string, work: AbortController): Promise<void> {
    let i = 0;
    try {
      for await (const { event, data } of this.host.session.rows(path, work.signal)) {
        if (work !== this.#abort) return;
        if (event === "row") this.row(data as Row, i++);
        if (event === "done") this.done(data as Whole);
        this.host.requestUpdate();
      }
    } catch (error) {
      if (work !== this.#abort) return;
      this.error = error instanceof ApiError ? error : new ApiError(String(error), 0);
      this.host.requestUpdate();
    }
  }
}
