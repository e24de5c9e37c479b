/** Transport for reports: responses stored in the HTML file. Uses no server and no network. */
import type { Edit, Address } from "./lib/address.js";
import { fromBase64, decode, type Tensor } from "./lib/tensor.js";
import type { TraceInfo } from "./api_types.js";
import { apiError, ApiError, type Transport } from "./transport.js";

/** Metadata of a report, see glassformer/inspect/present/report.py. */
export interface Report {
  address: Partial<Address>;
  serve: string; // the command that serves the model
  rule: string; // describes which responses are stored
  defaults: Record<string, Record<string, string>>; // default parameters of each view
  traces: { prompt: string; max_tokens: number; edits: Edit[]; trace: TraceInfo }[];
}

type StoredResponse = ["json", unknown] | ["tensor", string] | ["error", unknown];

export class ReportTransport implements Transport {
  readonly live = false;
  #responses: Promise<Record<string, StoredResponse>>;

  constructor(
    readonly report: Report,
    packed: string,
  ) {
    this.#responses = decompress(packed);
  }

  get note(): string {
    return `This is a report of one text. To generate, edit or sweep, serve the model: ${this.report.serve}`;
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

  /** Yield the trace that a body requests, or the complete view; several positions are looked up one by one. */
  async *events(path: string, body: unknown): AsyncGenerator<{ event: string; data: unknown }> {
    if (body !== undefined) {
      yield { event: "trace", data: this.#trace(path, body) };
      return;
    }
    const [where = "", query = ""] = path.split(/\?(.*)/s),
      request = new URLSearchParams(query),
      positions = request.get("position");
    request.delete("stream");
    for (const position of positions?.split(",") ?? [null]) {
      if (position !== null) request.set("position", position);
      yield { event: "done", data: await this.#find(`${where}?${request.toString()}`) };
    }
  }

  async #find(path: string): Promise<unknown> {
    const stored = (await this.#responses)[canonicalPath(path, this.report.defaults)];
    if (!stored) throw this.#notStored(`This report contains only ${this.report.rule}.`);
    if (stored[0] === "error") throw apiError(stored[1], 400, "refused");
    return stored[1];
  }

  /** Return the stored trace that matches a request. */
  #trace(path: string, body: unknown): TraceInfo {
    const request = body as { prompt?: unknown; max_tokens?: number; edits?: Edit[] };
    const same = (one: Report["traces"][number]) =>
      one.prompt === request.prompt &&
      one.max_tokens === (request.max_tokens ?? 0) &&
      sameEdits(one.edits, request.edits ?? []);
    const found = path === "/v1/traces" ? this.report.traces.find(same) : undefined;
    if (!found) throw this.#notStored("A report cannot compute new traces: it contains only one text.");
    return found.trace;
  }

  #notStored(why: string): ApiError {
    return new ApiError(`${why} To see more, run: ${this.report.serve}`, 404, "not_found_error", null, "not_baked");
  }
}

/** Canonical form of a path: sorted parameters without defaults. Must match glassformer/inspect/present/router.py. */
export function canonicalPath(path: string, defaults: Report["defaults"]): string {
  const [where = "", query = ""] = path.split(/\?(.*)/s);
  const defaultValues = defaults[where.includes("/views/") ? where.slice(where.lastIndexOf("/") + 1) : "tensor"] ?? {};
  const given = [...new URLSearchParams(query)]
    .filter(([name, value]) => defaultValues[name] !== value)
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

async function decompress(text: string): Promise<Record<string, StoredResponse>> {
  const stream = new Blob([fromBase64(text.trim()) as Uint8Array<ArrayBuffer>])
    .stream()
    .pipeThrough(new DecompressionStream("gzip"));
  return (await new Response(stream).json()) as Record<string, StoredResponse>;
}

/** Return the transport of the report in this document, or null. */
export function reportIn(page: Document): ReportTransport | null {
  const about = page.getElementById("gf-report")?.textContent,
    answers = page.getElementById("gf-answers")?.textContent;
  return about && answers ? new ReportTransport(JSON.parse(about) as Report, answers) : null;
}
