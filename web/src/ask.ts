/** One answer that an element shows: asked for when its path changes, the old one standing until the new one is here. */
import type { ReactiveController, ReactiveElement } from "lit";
import { Refused } from "./transport.js";
import type { Session } from "./session.js";

type Host = ReactiveElement & { session: Session };

export class Ask<T> implements ReactiveController {
  value: T | null = null;
  error: Refused | null = null;
  pending = false;
  #path: string | null = null;

  constructor(
    private readonly host: Host,
    private readonly path: () => string | null,
    private readonly kind: "json" | "tensor" = "json",
    private readonly delay = 0, // milliseconds that a path must stand, for what takes long while a cursor moves
  ) {
    host.addController(this);
  }

  hostUpdate(): void {
    const path = this.path();
    if (path === this.#path) return;
    this.#path = path;
    this.error = null;
    if (path === null) return;
    this.pending = true;
    if (this.delay) setTimeout(() => this.#fetch(path), this.delay);
    else this.#fetch(path);
  }

  #fetch(path: string): void {
    if (path !== this.#path) return;
    this.host.session.ask<T>(path, this.kind).then(
      (value) => this.#got(path, value, null),
      (error: unknown) => this.#got(path, null, error instanceof Refused ? error : new Refused(String(error), 0)),
    );
  }

  #got(path: string, value: T | null, error: Refused | null): void {
    if (path !== this.#path) return; // asked for something else since
    this.pending = false;
    this.error = error;
    if (value !== null || error) this.value = value;
    this.host.requestUpdate();
  }
}
