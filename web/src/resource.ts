/** Reactive controller that fetches a path when it changes, and keeps the old value until the new one arrives. */
import type { ReactiveController, ReactiveElement } from "lit";
import { ApiError } from "./transport.js";
import type { Session } from "./session.js";

type Host = ReactiveElement & { session: Session };

export class Resource<T> implements ReactiveController {
  value: T | null = null;
  error: ApiError | null = null;
  pending = false;
  #path: string | null = null;

  constructor(
    private readonly host: Host,
    private readonly path: () => string | null,
    private readonly kind: "json" | "tensor" = "json",
    private readonly delay = 0, // milliseconds to debounce slow requests
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
    this.host.session.fetch<T>(path, this.kind).then(
      (value) => this.#receive(path, value, null),
      (error: unknown) => this.#receive(path, null, error instanceof ApiError ? error : new ApiError(String(error), 0)),
    );
  }

  #receive(path: string, value: T | null, error: ApiError | null): void {
    if (path !== this.#path) return; // the path has changed
    this.pending = false;
    this.error = error;
    if (value !== null || error) this.value = value;
    this.host.requestUpdate();
  }
}
