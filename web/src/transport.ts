/** Access to the model's data: over HTTP here; notebooks and reports have other implementations. */
import { EventReader } from "./lib/events.js";
import { decode, type Tensor } from "./lib/tensor.js";

export interface Transport {
  readonly live: boolean; // whether a model is available to generate, edit and sweep
  readonly note: string; // explanation if it is not
  json<T>(path: string, signal?: AbortSignal): Promise<T>;
  tensor(path: string, signal?: AbortSignal): Promise<Tensor>;
  post<T>(path: string, body: unknown, signal?: AbortSignal): Promise<T>;
  /** Stream events. Without a body: the rows of a view. */
  events(path: string, body: unknown, signal?: AbortSignal): AsyncIterable<{ event: string; data: unknown }>;
}

/** An error response, with the server's message. */
export class ApiError extends Error {
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

/** Whether the error is a missing or wrong API key. */
export const isUnauthorized = (error: unknown): boolean => error instanceof ApiError && error.status === 401;

export class HttpTransport implements Transport {
  readonly live = true;
  readonly note = "";

  constructor(
    readonly base = "",
    public key = "",
  ) {}

  async json<T>(path: string, signal?: AbortSignal): Promise<T> {
    return (await (await this.#request(path, signal ? { signal } : {})).json()) as T;
  }

  async tensor(path: string, signal?: AbortSignal): Promise<Tensor> {
    return decode(await (await this.#request(path, signal ? { signal } : {})).arrayBuffer());
  }

  async post<T>(path: string, body: unknown, signal?: AbortSignal): Promise<T> {
    return (await (await this.#request(path, this.#postInit(body, signal))).json()) as T;
  }

  async *events(path: string, body: unknown, signal?: AbortSignal): AsyncGenerator<{ event: string; data: unknown }> {
    const answer = await this.#request(
      path,
      body === undefined ? (signal ? { signal } : {}) : this.#postInit(body, signal),
    );
    if (!answer.body) return;
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    const events = new EventReader();
    try {
      for (;;) {
        const { done, value } = await reader.read().catch((error: unknown) => {
          throw signal?.aborted
            ? error
            : new ApiError(
                "The connection to the server was lost during a response. Check that the server is running.",
                0,
              );
        });
        if (done) return;
        for (const { event, data } of events.feed(value)) {
          if (data === "[DONE]") return;
          const body: unknown = JSON.parse(data);
          if (event === "error") throw apiError(body, 200, "the response ended with an error");
          yield { event, data: body };
        }
      }
    } finally {
      await reader.cancel().catch(() => undefined); // a client disconnect cancels the request
    }
  }

  #postInit(body: unknown, signal?: AbortSignal): RequestInit {
    const headers = { "Content-Type": "application/json" };
    return { method: "POST", headers, body: JSON.stringify(body), ...(signal ? { signal } : {}) };
  }

  async #request(path: string, init: RequestInit): Promise<Response> {
    const headers = new Headers(init.headers);
    if (this.key) headers.set("Authorization", `Bearer ${this.key}`);
    let answer: Response;
    try {
      answer = await fetch(this.base + path, { ...init, headers });
    } catch (error) {
      if (init.signal?.aborted) throw error;
      throw new ApiError("The server does not respond. Check that it is running.", 0);
    }
    if (answer.ok) return answer;
    const body: unknown = await answer.json().catch(() => null);
    throw apiError(body, answer.status, `the server responded with ${answer.status} ${answer.statusText}`);
  }
}

/** Convert an error body in OpenAI's format. */
export function apiError(body: unknown, status: number, otherwise: string): ApiError {
  const error = (
    body as { error?: { message?: string; type?: string; param?: string | null; code?: string | null } } | null
  )?.error;
  return new ApiError(
    error?.message ?? otherwise,
    status,
    error?.type ?? "",
    error?.param ?? null,
    error?.code ?? null,
  );
}
