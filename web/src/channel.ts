/** The model's numbers through a notebook's channel: messages to the kernel, which answers as the server would. */
import { decode, type Tensor } from "./lib/tensor.js";
import { refusal, Refused, type Transport } from "./transport.js";

/** Both ways to the kernel: an anywidget model has them. */
export interface Port {
  send(content: unknown): void;
  on(event: "msg:custom", heard: (content: unknown, buffers: DataView[]) => void): void;
}

/** glassformer/inspect/notebook.py: an answer, an event of several, or why there is none. */
interface Answer {
  id: number;
  event?: string;
  done: boolean;
  error?: unknown;
}

type Heard = (answer: Answer, data: DataView | undefined) => void;

export class Channel implements Transport {
  readonly live = true;
  readonly note = "";
  #asked = new Map<number, Heard>();
  #next = 0;

  constructor(readonly port: Port) {
    port.on("msg:custom", (content, buffers) => {
      const answer = content as Answer;
      this.#asked.get(answer.id)?.(answer, buffers[0]);
    });
  }

  async json<T>(path: string, signal?: AbortSignal): Promise<T> {
    return parsed(await this.#one({ kind: "get", path }, signal)) as T;
  }

  async tensor(path: string, signal?: AbortSignal): Promise<Tensor> {
    const { buffer, byteOffset, byteLength } = await this.#one({ kind: "get", path }, signal);
    return decode(buffer.slice(byteOffset, byteOffset + byteLength) as ArrayBuffer);
  }

  async post<T>(path: string, body: unknown, signal?: AbortSignal): Promise<T> {
    let last: unknown = null;
    for await (const { data } of this.events(path, body, signal)) last = data;
    return last as T;
  }

  async *events(path: string, body: unknown, signal?: AbortSignal): AsyncGenerator<{ event: string; data: unknown }> {
    const come: [Answer, DataView | undefined][] = [];
    let wake = (): void => undefined;
    const id = this.#ask({ kind: "post", path, body }, (...one) => {
      come.push(one);
      wake();
    });
    signal?.addEventListener("abort", () => wake());
    try {
      for (;;) {
        while (!come.length && !signal?.aborted) await new Promise<void>((done) => (wake = done));
        if (signal?.aborted) return;
        const [answer, data] = come.shift() as [Answer, DataView | undefined];
        if (answer.error) throw refusal(answer, 400, "refused");
        if (data && answer.event) yield { event: answer.event, data: parsed(data) };
        if (answer.done) return;
      }
    } finally {
      this.#asked.delete(id);
    }
  }

  #ask(message: object, heard: Heard): number {
    const id = this.#next++;
    this.#asked.set(id, heard);
    this.port.send({ id, ...message });
    return id;
  }

  #one(message: object, signal?: AbortSignal): Promise<DataView> {
    return new Promise((got, failed) => {
      const id = this.#ask(message, (answer, data) => {
        this.#asked.delete(id);
        if (answer.error || !data) failed(refusal(answer, 400, "the kernel sent nothing"));
        else got(data);
      });
      signal?.addEventListener("abort", () => {
        this.#asked.delete(id);
        failed(new Refused("no longer asked for", 0));
      });
    });
  }
}

const parsed = (data: DataView): unknown => JSON.parse(new TextDecoder().decode(data));
