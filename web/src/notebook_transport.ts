/** Transport for notebooks: messages to the kernel, which responds like the server. */
import { decode, type Tensor } from "./lib/tensor.js";
import { apiError, ApiError, type Transport } from "./transport.js";

/** The message interface of an anywidget model. */
export interface Port {
  send(content: unknown): void;
  on(event: "msg:custom", handler: (content: unknown, buffers: DataView[]) => void): void;
}

/** A message of glassformer/inspect/present/notebook.py: a response, one event of a stream, or an error. */
interface Response {
  id: number;
  event?: string;
  done: boolean;
  error?: unknown;
}

type Handler = (answer: Response, data: DataView | undefined) => void;

export class NotebookTransport implements Transport {
  readonly live = true;
  readonly note = "";
  #handlers = new Map<number, Handler>();
  #next = 0;

  constructor(readonly port: Port) {
    port.on("msg:custom", (content, buffers) => {
      const answer = content as Response;
      this.#handlers.get(answer.id)?.(answer, buffers[0]);
    });
  }

  async json<T>(path: string, signal?: AbortSignal): Promise<T> {
    return parseJson(await this.#request({ kind: "get", path }, signal)) as T;
  }

  async tensor(path: string, signal?: AbortSignal): Promise<Tensor> {
    const { buffer, byteOffset, byteLength } = await this.#request({ kind: "get", path }, signal);
    return decode(buffer.slice(byteOffset, byteOffset + byteLength) as ArrayBuffer);
  }

  async post<T>(path: string, body: unknown, signal?: AbortSignal): Promise<T> {
    let last: unknown = null;
    for await (const { data } of this.events(path, body, signal)) last = data;
    return last as T;
  }

  async *events(path: string, body: unknown, signal?: AbortSignal): AsyncGenerator<{ event: string; data: unknown }> {
    const messages: [Response, DataView | undefined][] = [];
    let wake = (): void => undefined;
    const id = this.#send({ kind: "post", path, body }, (...one) => {
      messages.push(one);
      wake();
    });
    signal?.addEventListener("abort", () => wake());
    try {
      for (;;) {
        while (!messages.length && !signal?.aborted) await new Promise<void>((done) => (wake = done));
        if (signal?.aborted) return;
        const [answer, data] = messages.shift() as [Response, DataView | undefined];
        if (answer.error) throw apiError(answer, 400, "refused");
        if (data && answer.event) yield { event: answer.event, data: parseJson(data) };
        if (answer.done) return;
      }
    } finally {
      this.#handlers.delete(id);
    }
  }

  #send(message: object, handler: Handler): number {
    const id = this.#next++;
    this.#handlers.set(id, handler);
    this.port.send({ id, ...message });
    return id;
  }

  #request(message: object, signal?: AbortSignal): Promise<DataView> {
    return new Promise((got, failed) => {
      const id = this.#send(message, (answer, data) => {
        this.#handlers.delete(id);
        if (answer.error || !data) failed(apiError(answer, 400, "the kernel sent an empty response"));
        else got(data);
      });
      signal?.addEventListener("abort", () => {
        this.#handlers.delete(id);
        failed(new ApiError("the request was cancelled", 0));
      });
    });
  }
}

const parseJson = (data: DataView): unknown => JSON.parse(new TextDecoder().decode(data));
