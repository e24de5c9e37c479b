/** The one way to the model's numbers: HTTP here, a notebook's channel or a report's baked answers elsewhere. */
import { EventReader } from "./lib/events.js";
import { decode, type Tensor } from "./lib/tensor.js";

export interface Transport {
  readonly live: boolean; // whether a model stands behind it that can write, edit and sweep
  readonly note: string; // why not, where it is not
  json<T>(path: string, signal?: AbortSignal): Promise<T>;
  tensor(path: string, signal?: AbortSignal): Promise<Tensor>;
  post<T>(path: string, body: unknown, signal?: AbortSignal): Promise<T>;
  /** What comes bit by bit; without a body, a view's rows. */
  events(path: string, body: unknown, signal?: AbortSignal): AsyncIterable<{ event: string; data: unknown }>;
}

/** Why something is not answered, in the words of whoever refused. */
export class Refused extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly type = "",
    readonly param: string | null = null,
    readonly code: string | null = null,
  ) {
    super(message);
  }
}

/** A key is wanted, and this one (or none) is not it. */
export const wantsKey = (error: unknown): boolean => error instanceof Refused && error.status === 401;

export class Http implements Transport {
  readonly live = true;
  readonly note = "";

  constructor(
    readonly base = "",
    public key = "",
  ) {}

  async json<T>(path: string, signal?: AbortSignal): Promise<T> {
    return (await (await this.#ask(path, signal ? { signal } : {})).json()) as T;
  }

  async tensor(path: string, signal?: AbortSignal): Promise<Tensor> {
    return decode(await (await this.#ask(path, signal ? { signal } : {})).arrayBuffer());
  }

  async post<T>(path: string, body: unknown, signal?: AbortSignal): Promise<T> {
    return (await (await this.#ask(path, this.#with(body, signal))).json()) as T;
  }

  async *events(path: string, body: unknown, signal?: AbortSignal): AsyncGenerator<{ event: string; data: unknown }> {
    const answer = await this.#ask(path, body === undefined ? (signal ? { signal } : {}) : this.#with(body, signal));
    if (!answer.body) return;
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    const events = new EventReader();
    try {
      for (;;) {
        const { done, value } = await reader.read().catch((error: unknown) => {
          throw signal?.aborted
            ? error
            : new Refused("The server went away in the middle of its answer. Is it still running?", 0);
        });
        if (done) return;
        for (const { event, data } of events.feed(value)) {
          if (data === "[DONE]") return;
          const said: unknown = JSON.parse(data);
          if (event === "error") throw refusal(said, 200, "the answer broke off");
          yield { event, data: said };
        }
      }
    } finally {
      await reader.cancel().catch(() => undefined); // whoever stops listening stops the work
    }
  }

  #with(body: unknown, signal?: AbortSignal): RequestInit {
    const headers = { "Content-Type": "application/json" };
    return { method: "POST", headers, body: JSON.stringify(body), ...(signal ? { signal } : {}) };
  }

  async #ask(path: string, init: RequestInit): Promise<Response> {
    const headers = new Headers(init.headers);
    if (this.key) headers.set("Authorization", `Bearer ${this.key}`);
    let answer: Response;
    try {
      answer = await fetch(this.base + path, { ...init, headers });
    } catch (error) {
      if (init.signal?.aborted) throw error;
      throw new Refused("The server does not answer. Is it still running?", 0);
    }
    if (answer.ok) return answer;
    const said: unknown = await answer.json().catch(() => null);
    throw refusal(said, answer.status, `the server answered ${answer.status} ${answer.statusText}`);
  }
}

/** The error that a body in OpenAI's shape tells of. */
export function refusal(said: unknown, status: number, otherwise: string): Refused {
  const error = (
    said as { error?: { message?: string; type?: string; param?: string | null; code?: string | null } } | null
  )?.error;
  return new Refused(error?.message ?? otherwise, status, error?.type ?? "", error?.param ?? null, error?.code ?? null);
}
