/** What the whole page shares: where one is, which model and text, and the answers got so far. */
import { read, START, write, type Edit, type Place } from "./lib/address.js";
import type { Bar } from "./bar.js";
import { Refused, wantsKey, type Transport } from "./transport.js";
import { asServed } from "./recipe.js";
import { stepOf } from "./steps.js";
import type { Anatomy, Kind, TraceInfo, Written } from "./shapes.js";

/** A picked cell, every number filled in. */
export interface Here {
  layer: number;
  head: number;
  query: number;
  key: number;
}

type Parameters = Record<string, string | number | boolean | null | undefined>;

/** The picture that shows first what a kind of model does. */
const OPENS: Record<Kind, string> = {
  decoder: START.view,
  "encoder-decoder": "alignment",
  recurrent: "alignment",
  encoder: "grid",
};

const WHOLE = 64; // tokens that a translation may take: it ends by itself

const PATIENCE = 1500; // milliseconds that a first picture waits for the focus
const KEPT = 300; // answers, the oldest dropped first
const READ = 24; // texts

/** Dispatches "change" whenever anything that it shows has changed. */
export class Session extends EventTarget {
  place: Place;
  models: string[] = [];
  kinds: Record<string, Kind> = {};
  openings: Record<string, string | null> = {}; // what is read first, where a story is not of the model's kind
  anatomy: Anatomy | null = null;
  trace: TraceInfo | null = null;
  /** The tokens of a text that is being written, as they come; null when none is. */
  writing: Written[] | null = null;
  problem: Refused | null = null;
  keyWanted = false;
  /** Work that gives way to a text that is asked for: one thing computes at a time. */
  background: AbortController | null = null;
  /** The head and query that are worth seeing first, once they are known. */
  first: Partial<Here> = {};

  #answers = new Map<string, Promise<unknown>>();
  #read = new Map<string, Promise<TraceInfo>>(); // texts that the model has read, by what was asked
  #plain: { key: string; trace: TraceInfo } | null = null; // the text without edits
  #work: AbortController | null = null;
  #opened = ""; // the trace that is open, or being opened, as the address says it

  constructor(
    readonly transport: Transport,
    readonly bar: Bar,
  ) {
    super();
    this.place = read(bar.read());
  }

  /** Find the models, open the text of the address, and follow the address from then on. */
  async start(): Promise<void> {
    this.bar.listen(() => this.#moved());
    await this.retry();
  }

  async retry(): Promise<void> {
    this.problem = null;
    this.keyWanted = false;
    this.#answers.clear();
    this.#read.clear();
    this.#opened = "";
    try {
      const list = await this.transport.json<{ data: { id: string; kind?: Kind; example_text?: string | null }[] }>(
        "/v1/models",
      );
      this.models = list.data.map((model) => model.id);
      this.kinds = Object.fromEntries(list.data.map((model) => [model.id, model.kind ?? "decoder"]));
      this.openings = Object.fromEntries(list.data.map((model) => [model.id, model.example_text ?? null]));
      this.#settle(this.bar.read());
      await this.open();
    } catch (error) {
      this.#trouble(error);
    }
  }

  /** Whether the model can be asked for more than is there already. */
  get live(): boolean {
    return this.transport.live;
  }

  /** The edits that hold: those that are not put aside. */
  get edits(): Edit[] {
    return this.place.edits.filter((edit) => !edit["off"]);
  }

  get model(): string {
    return this.place.model || this.models[0] || "";
  }

  /** Tokens of the text so far: those of the trace, or those that have been written of one to come. */
  get tokens(): { id: number; text: string }[] {
    return this.trace?.tokens ?? [];
  }

  /** The tokens that keys are of: the text's own, or the source's where that is what is looked at. */
  get keys(): { id: number; text: string }[] {
    return (this.place.view === "alignment" && this.trace?.source?.tokens) || this.tokens;
  }

  /** Whether no token sees a later one. */
  get causal(): boolean {
    return this.anatomy?.kind !== "encoder";
  }

  /** How many tokens have passed through the model: of the text being written, or of the one that is open. */
  get passed(): number {
    const last = this.writing?.at(-1);
    return last ? last.position + 1 : this.writing ? 0 : this.tokens.length;
  }

  /** Where one is, with what the address leaves open filled in. */
  get here(): Here {
    const { place, first } = this;
    const last = Math.max(0, this.tokens.length - 1);
    const layers = this.anatomy?.layers.length ?? 1;
    const pick = (asked: number, otherwise: number | undefined, top: number) =>
      Math.min(Math.max(0, top), asked >= 0 ? asked : (otherwise ?? 0));
    const layer = pick(place.layer, first.layer, layers - 1);
    const query = pick(place.query, first.query ?? (this.trace ? this.trace.n_prompt - 1 : 0), last);
    return {
      layer,
      head: pick(place.head, first.head, (this.anatomy?.layers[layer]?.n_heads ?? 1) - 1),
      query,
      key: pick(place.key, first.key ?? 0, Math.max(0, this.keys.length - 1)),
    };
  }

  /** Move. A new view or text is a step that the back button takes back; a moved cursor is not. */
  go(
    change: Partial<Place>,
    push = "view" in change || "text" in change || "model" in change || "edits" in change,
  ): void {
    const stays = this.trace !== null && !("text" in change) && !("model" in change);
    this.place = { ...this.place, ...(stays ? this.here : {}), ...change }; // what was chosen for one is a choice from now on
    this.bar.write(write(this.place), push);
    this.changed();
    if (this.#wanted() !== this.#opened) void this.open(true);
  }

  /** Another model, on a text of its own kind where the text was only what the page opened with. */
  choose(model: string): void {
    const kind = this.kinds[model] ?? "decoder",
      other = kind !== this.kinds[this.model],
      given = this.place.text !== START.text && this.place.text !== this.openings[this.model];
    const more = Object.fromEntries(Object.entries(this.place.more).filter(([name]) => name !== "target"));
    this.go({
      model,
      more,
      layer: -1,
      head: -1,
      query: -1,
      key: -1,
      edits: [],
      ...(given ? {} : { text: this.openings[model] ?? START.text, write: this.openings[model] ? WHOLE : START.write }),
      ...(other ? { view: OPENS[kind] } : {}),
    });
  }

  /** Where the address says no text, one of the model's kind; where it names no picture either, that which shows it first. */
  #settle(address: string): void {
    const opening = this.openings[this.model],
      kind = this.kinds[this.model] ?? "decoder";
    if (!opening || this.place.text !== START.text) return;
    this.place = {
      ...this.place,
      text: opening,
      ...(this.place.write === START.write ? { write: WHOLE } : {}),
      ...(/^#\/[a-z]/.test(address) ? {} : { view: OPENS[kind] }),
    };
    this.bar.write(write(this.place), false);
  }

  /** Open a view; a walk that is under way goes on from there. */
  visit(view: string, change: Partial<Place> = {}): void {
    const step = this.place.step < 0 ? -1 : stepOf(view, this.place.step);
    this.go({ ...change, view, step }, true);
  }

  more(change: Record<string, string | null>): void {
    const kept = Object.entries({ ...this.place.more, ...change }).filter(
      (one): one is [string, string] => one[1] !== null,
    );
    this.go({ more: Object.fromEntries(kept) });
  }

  /** Open the text of the address: the model reads it, and writes on. `known`: as it was read before, if it was. */
  async open(known = false, again = false): Promise<void> {
    this.stop();
    const work = (this.#work = new AbortController());
    const before = this.#opened,
      wanted = (this.#opened = this.#wanted());
    this.writing = [];
    const held = known ? await this.#read.get(wanted)?.catch(() => undefined) : undefined;
    if (work !== this.#work) return;
    this.problem = null;
    if (!held) {
      this.background?.abort();
      this.changed();
    }
    try {
      if (!this.anatomy || before.split("\n")[0] !== wanted.split("\n")[0]) {
        this.anatomy = await this.ask<Anatomy>(this.ofModel("anatomy", {}));
        this.first = {};
      }
      if (work !== this.#work) return;
      if (held) await this.#show(held);
      else {
        const body = await this.#asking(this.edits, work.signal);
        for await (const { event, data } of this.transport.events(
          "/v1/traces",
          { ...body, stream: true },
          work.signal,
        )) {
          if (work !== this.#work) return;
          if (event === "token") this.writing = [...(this.writing ?? []), data as Written];
          if (event === "trace") {
            this.#keep(wanted, Promise.resolve(data as TraceInfo));
            await this.#show(data as TraceInfo);
          }
          this.changed();
        }
      }
    } catch (error) {
      if (work !== this.#work) return;
      if (gone(error) && !again) return (this.#forget(), this.open(false, true)); // a text that an edit takes from
      if (!work.signal.aborted) {
        this.trace = null;
        this.#trouble(error);
      }
    }
    if (work !== this.#work) return;
    this.#work = null;
    this.writing = null;
    this.changed();
  }

  /**
   * The text of the address under some edits, read and written on once; Refused where it cannot be.
   * `write`: so many tokens of its own, where a target is given and would be read instead.
   */
  read(edits: Edit[], write?: number): Promise<TraceInfo> {
    const key = this.#wanted(edits) + (write === undefined ? "" : `\n${write}`),
      known = this.#read.get(key);
    if (known) return known;
    this.background?.abort();
    const made = () =>
      this.#asking(edits, undefined, write).then((body) => this.transport.post<TraceInfo>("/v1/traces", body));
    return this.#keep(
      key,
      made().catch((error: unknown) => {
        if (!gone(error)) throw error;
        this.#forget();
        return made();
      }),
    );
  }

  /** The text as it is without edits; null until `readOriginal` has it, and while the one that is open is on its way. */
  get original(): TraceInfo | null {
    if (this.writing) return null;
    if (!this.edits.length) return this.trace;
    return this.#plain?.key === this.#wanted([]) ? this.#plain.trace : null;
  }

  async readOriginal(): Promise<void> {
    const key = this.#wanted([]);
    if (!this.edits.length || this.#plain?.key === key) return;
    const trace = await this.read([]);
    this.#plain = { key, trace };
    this.changed();
  }

  /** A text by itself, for what is taken from it. */
  readText(prompt: string): Promise<TraceInfo> {
    const key = `${this.model}\n\n${prompt}`;
    return (
      this.#read.get(key) ??
      this.#keep(key, this.transport.post<TraceInfo>("/v1/traces", { model: this.model, prompt, max_tokens: 0 }))
    );
  }

  /** Texts that the server no longer has. */
  #forget(): void {
    this.#read.clear();
    this.#plain = null;
  }

  #keep(key: string, made: Promise<TraceInfo>): Promise<TraceInfo> {
    this.#read.delete(key);
    this.#read.set(key, made);
    made.catch(() => this.#read.delete(key));
    for (const old of this.#read.keys()) {
      if (this.#read.size <= READ) break;
      this.#read.delete(old);
    }
    return made;
  }

  /** What asks for the text of the address under some edits. */
  async #asking(edits: Edit[], signal?: AbortSignal, anew?: number): Promise<Record<string, unknown>> {
    const { text, write, temperature, seed, more } = this.place,
      kind = this.anatomy?.kind ?? "decoder";
    const reads = anew === undefined && (kind === "encoder-decoder" || kind === "recurrent");
    const target = reads ? more["target"] : undefined; // given, not written
    const max_tokens = kind === "encoder" || target !== undefined ? 0 : (anew ?? write);
    const served = await asServed(this, edits, signal);
    return {
      model: this.model,
      prompt: text,
      max_tokens,
      edits: served,
      temperature,
      ...(temperature > 0 ? { seed } : {}),
      ...(target === undefined ? {} : { target }),
    };
  }

  /** Show a trace, at a head that does something where the address names none. */
  async #show(trace: TraceInfo): Promise<void> {
    const { place } = this,
      open = place.layer < 0 || place.head < 0 || place.key < 0;
    if (open && this.anatomy?.kind === "decoder") {
      const soon = new Promise<Partial<Here>>((done) => setTimeout(() => done({}), PATIENCE));
      const found = this.#focus(trace).catch(() => ({}));
      this.first = await Promise.race([found, soon]);
    }
    this.trace = trace;
  }

  /** The layer, head, query and key to show first, where the address leaves them open: see views/focus.py. */
  #focus(trace: TraceInfo): Promise<Here> {
    const { layer, head, query } = this.place;
    const at = { layer, head, query: Math.min(query, trace.tokens.length - 1) };
    const given = Object.fromEntries(Object.entries(at).filter(([, value]) => value >= 0));
    return this.ask<Here>(`/v1/traces/${trace.id}/focus${asked(given)}`);
  }

  /** End the writing; the server notices that nobody listens. */
  stop(): void {
    this.#work?.abort();
    this.#work = null;
    this.writing = null;
  }

  ofModel(view: string, parameters: Parameters): string {
    return `/v1/models/${encodeURIComponent(this.model)}/views/${view}${asked(parameters)}`;
  }

  /** The path of a view of the open trace; null while there is none. */
  ofTrace(view: string, parameters: Parameters): string | null {
    return this.trace ? `/v1/traces/${this.trace.id}/views/${view}${asked(parameters)}` : null;
  }

  /** The path of a tensor of the open trace. */
  tensor(name: string, parameters: Parameters): string | null {
    return this.trace ? `/v1/traces/${this.trace.id}/tensors/${name}${asked(parameters)}` : null;
  }

  /** An answer, asked for once. */
  ask<T>(path: string, kind: "json" | "tensor" = "json"): Promise<T> {
    const known = this.#answers.get(path);
    if (known) return known as Promise<T>;
    const answer = this.transport[kind]<T>(path) as Promise<T>;
    this.#answers.set(path, answer);
    answer.catch((error: unknown) => {
      this.#answers.delete(path); // what failed may be asked for again
      this.#failed(path, error);
    });
    for (const old of this.#answers.keys()) {
      if (this.#answers.size <= KEPT) break;
      this.#answers.delete(old);
    }
    return answer;
  }

  /** A view that comes row by row, until nobody listens; the same once more is asked for once more. */
  async *rows(path: string, signal: AbortSignal): AsyncGenerator<{ event: string; data: unknown }> {
    try {
      yield* this.transport.events(path, undefined, signal);
    } catch (error) {
      if (!signal.aborted) this.#failed(path, error);
      throw error;
    }
  }

  #failed(path: string, error: unknown): void {
    if (wantsKey(error)) this.#trouble(error);
    if (this.trace && path.includes(this.trace.id)) this.lost(error);
  }

  /** Where a trace is gone, for the server has dropped it for others: read the text again. */
  lost(error: unknown): void {
    if (!gone(error)) return;
    this.trace = null;
    this.#forget();
    void this.open();
  }

  changed(): void {
    this.dispatchEvent(new Event("change"));
  }

  #wanted(edits = this.edits): string {
    const { text, write: more, temperature, seed } = this.place;
    return [this.model, more, temperature, seed, JSON.stringify(edits), this.place.more["target"] ?? "", text].join(
      "\n",
    );
  }

  #moved(): void {
    const address = this.bar.read();
    if (address === write(this.place)) return;
    this.place = read(address);
    this.#settle(address);
    this.changed();
    if (this.#wanted() !== this.#opened) void this.open(true);
  }

  #trouble(error: unknown): void {
    this.keyWanted ||= wantsKey(error);
    this.problem = error instanceof Refused ? error : new Refused(String(error), 0);
    this.changed();
  }
}

const gone = (error: unknown): boolean =>
  error instanceof Refused && error.code !== null && error.code.startsWith("trace_");

function asked(parameters: Parameters): string {
  const fields = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters))
    if (value !== null && value !== undefined) fields.set(name, String(value));
  const text = fields.toString();
  return text ? `?${text}` : "";
}
