/** A report's numbers: answers baked into the file, by what the page asks. No server, no network. */
import type { Edit, Place } from "./lib/address.js";
import { fromBase64, decode, type Tensor } from "./lib/tensor.js";
import type { TraceInfo } from "./shapes.js";
import { refusal, Refused, type Transport } from "./transport.js";

/** What stands beside the answers: see glassformer/inspect/report.py. */
export interface Report {
  place: Partial<Place>;
  serve: string; // the command that opens this model alive
  rule: string; // what is baked, in words
  defaults: Record<string, Record<string, string>>; // a view's parameters where they are not given
  traces: { prompt: string; max_tokens: number; edits: Edit[]; trace: TraceInfo }[];
}

type Kept = ["json", unknown] | ["tensor", string] | ["refused", unknown];

export class Baked implements Transport {
  readonly live = false;
  #answers: Promise<Record<string, Kept>>;

  constructor(
    readonly report: Report,
    packed: string,
  ) {
    this.#answers = unpacked(packed);
  }

  get note(): string {
    return `A report: one text, as it was read. To write, edit or sweep, open the model alive: ${this.report.serve}`;
  }

  async json<T>(path: string): Promise<T> {
    return (await this.#find(path)) as T;
  }

  async tensor(path: string): Promise<Tensor> {
    return decode(fromBase64((await this.#find(path)) as string).buffer as ArrayBuffer);
  }

  async post<T>(path: string, body: unknown): Promise<T> {
    return this.#trace(path, body) as T;
  }

  /** A trace; or a view, whose rows are all there: of several positions one after the other, as they are baked. */
  async *events(path: string, body: unknown): AsyncGenerator<{ event: string; data: unknown }> {
    if (body !== undefined) {
      yield { event: "trace", data: this.#trace(path, body) };
      return;
    }
    const [where = "", query = ""] = path.split(/\?(.*)/s),
      asked = new URLSearchParams(query),
      several = asked.get("position");
    asked.delete("stream");
    for (const position of several?.split(",") ?? [null]) {
      if (position !== null) asked.set("position", position);
      yield { event: "done", data: await this.#find(`${where}?${asked.toString()}`) };
    }
  }

  async #find(path: string): Promise<unknown> {
    const kept = (await this.#answers)[keyOf(path, this.report.defaults)];
    if (!kept) throw this.#missing(`This report holds ${this.report.rule}, and not this.`);
    if (kept[0] === "refused") throw refusal(kept[1], 400, "refused");
    return kept[1];
  }

  /** The trace that a body asks for, where it is one of those in the file. */
  #trace(path: string, body: unknown): TraceInfo {
    const asked = body as { prompt?: unknown; max_tokens?: number; edits?: Edit[] };
    const same = (one: Report["traces"][number]) =>
      one.prompt === asked.prompt &&
      one.max_tokens === (asked.max_tokens ?? 0) &&
      sameEdits(one.edits, asked.edits ?? []);
    const found = path === "/v1/traces" ? this.report.traces.find(same) : undefined;
    if (!found) throw this.#missing("Nothing is computed in a report: it holds one text, as it was read.");
    return found.trace;
  }

  #missing(why: string): Refused {
    return new Refused(`${why} To see more: ${this.report.serve}`, 404, "not_found_error", null, "not_baked");
  }
}

/** A path told apart by what it asks for: parameters in order, defaults left out, as glassformer/inspect/answers.py does. */
export function keyOf(path: string, defaults: Report["defaults"]): string {
  const [where = "", query = ""] = path.split(/\?(.*)/s);
  const usual = defaults[where.includes("/views/") ? where.slice(where.lastIndexOf("/") + 1) : "tensor"] ?? {};
  const given = [...new URLSearchParams(query)]
    .filter(([name, value]) => usual[name] !== value)
    .map(([name, value]) => `${name}=${value}`);
  return `${decodeURIComponent(where)}?${given.sort().join("&")}`;
}

const sameEdits = (a: Edit[], b: Edit[]): boolean => {
  const spelled = (edits: Edit[]) =>
    JSON.stringify(
      edits.map((edit) =>
        Object.entries(edit)
          .filter(([, value]) => value !== null)
          .sort(),
      ),
    );
  return spelled(a) === spelled(b);
};

async function unpacked(text: string): Promise<Record<string, Kept>> {
  const stream = new Blob([fromBase64(text.trim()) as Uint8Array<ArrayBuffer>])
    .stream()
    .pipeThrough(new DecompressionStream("gzip"));
  return (await new Response(stream).json()) as Record<string, Kept>;
}

/** The report of this document, if it is one. */
export function bakedIn(page: Document): Baked | null {
  const about = page.getElementById("gf-report")?.textContent,
    answers = page.getElementById("gf-answers")?.textContent;
  return about && answers ? new Baked(JSON.parse(about) as Report, answers) : null;
}
