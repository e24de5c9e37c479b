/** State shared by all elements: address, model, open trace, and a cache of responses. */
import { parseAddress, DEFAULT_ADDRESS, formatAddress, type Edit, type Address } from "./lib/address.js";
import type { AddressBar } from "./address_bar.js";
import { ApiError, isUnauthorized, type Transport } from "./transport.js";
import { toServerEdits } from "./server_edits.js";
import { tourStepFor } from "./tour_views.js";
import type { Anatomy, Kind, TraceInfo, GeneratedToken } from "./api_types.js";

/** The selected layer, head, query and key, with defaults resolved. */
export interface Cursor {
  layer: number;
  head: number;
  query: number;
  key: number;
}

/** The cell to show first, and the reason. */
interface Focus extends Cursor {
  because: string;
}

interface ModelInfo {
  id: string;
  kind?: Kind;
  example_text?: string | null;
  context_length?: number | null;
}

type Parameters = Record<string, string | number | boolean | null | undefined>;

/** The view that opens first for each kind of model. */
const FIRST_VIEW: Record<Kind, string> = {
  decoder: DEFAULT_ADDRESS.view,
  "encoder-decoder": "alignment",
  recurrent: "alignment",
  encoder: "grid",
};

const SEQ2SEQ_MAX_TOKENS = 64; // a translation ends with its own end token

const MAX_RESPONSES = 300; // cached responses; the oldest is dropped first
const MAX_TRACES = 24; // cached traces; the oldest is dropped first

/** Session state. Dispatches "change" after every change of state. */
export class Session extends EventTarget {
  address: Address;
  models: string[] = [];
  kinds: Record<string, Kind> = {};
  exampleTexts: Record<string, string | null> = {}; // default text of each model; null: the default of the page
  contexts: Record<string, number | null> = {}; // context length of each model; null: unlimited
  anatomy: Anatomy | null = null;
  trace: TraceInfo | null = null;
  /** Tokens generated so far; null if no generation is running. */
  generated: GeneratedToken[] | null = null;
  error: ApiError | null = null;
  needsKey = false;
  /** Background work (a sweep), aborted when a new trace is requested. */
  background: AbortController | null = null;
  /** The initial focus, once it is known. */
  focus: Partial<Focus> = {};

  #responses = new Map<string, Promise<unknown>>();
  #traces = new Map<string, Promise<TraceInfo>>(); // traces by request
  #plain: { key: string; trace: TraceInfo } | null = null; // the trace without edits
  #work: AbortController | null = null;
  #opened = ""; // request of the trace that is open or being opened

  constructor(
    readonly transport: Transport,
    readonly addressBar: AddressBar,
  ) {
    super();
    this.address = parseAddress(addressBar.read());
  }

  /** List the models, open the trace of the address, and follow changes of the address. */
  async start(): Promise<void> {
    this.addressBar.listen(() => this.#addressChanged());
    await this.retry();
  }

  async retry(): Promise<void> {
    this.error = null;
    this.needsKey = false;
    this.#responses.clear();
    this.#traces.clear();
    this.#opened = "";
    try {
      const list = await this.transport.json<{ data: ModelInfo[] }>("/v1/models");
      this.models = list.data.map((model) => model.id);
      this.kinds = Object.fromEntries(list.data.map((model) => [model.id, model.kind ?? "decoder"]));
      this.contexts = Object.fromEntries(list.data.map((model) => [model.id, model.context_length ?? null]));
      this.exampleTexts = Object.fromEntries(list.data.map((model) => [model.id, model.example_text ?? null]));
      this.#applyModelDefaults(this.addressBar.read());
      await this.open();
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Whether a model is available to compute new traces. */
  get live(): boolean {
    return this.transport.live;
  }

  /** The enabled edits. */
  get edits(): Edit[] {
    return this.address.edits.filter((edit) => !edit["off"]);
  }

  get model(): string {
    return this.address.model || this.models[0] || "";
  }

  /** The tokens of the open trace. */
  get tokens(): { id: number; text: string }[] {
    return this.trace?.tokens ?? [];
  }

  /** The tokens that keys refer to: those of the source in the alignment view, otherwise those of the text. */
  get keyTokens(): { id: number; text: string }[] {
    return (this.address.view === "alignment" && this.trace?.source?.tokens) || this.tokens;
  }

  /** Whether attention is causal. */
  get causal(): boolean {
    return this.anatomy?.kind !== "encoder";
  }

  /** The number of processed tokens, of the running generation or of the open trace. */
  get processed(): number {
    const last = this.generated?.at(-1);
    return last ? last.position + 1 : this.generated ? 0 : this.tokens.length;
  }

  /** Why the server proposed the selected head; null if it was selected by the user, or is a fallback. */
  get whyThisHead(): string | null {
    const { cursor, focus } = this,
      proposed = focus.head === cursor.head && focus.layer === cursor.layer;
    return proposed && focus.because !== "selected" ? (focus.because ?? null) : null;
  }

  /** The selection, with defaults for what the address leaves open. */
  get cursor(): Cursor {
    const { address, focus } = this;
    const last = Math.max(0, this.tokens.length - 1);
    const layers = this.anatomy?.layers.length ?? 1;
    const pick = (selected: number, otherwise: number | undefined, top: number) =>
      Math.min(Math.max(0, top), selected >= 0 ? selected : (otherwise ?? 0));
    const layer = pick(address.layer, focus.layer, layers - 1);
    const query = pick(address.query, focus.query ?? (this.trace ? this.trace.n_prompt - 1 : 0), last);
    return {
      layer,
      head: pick(address.head, focus.head, (this.anatomy?.layers[layer]?.n_heads ?? 1) - 1),
      query,
      key: pick(address.key, focus.key ?? 0, Math.max(0, this.keyTokens.length - 1)),
    };
  }

  /** Change the address. A new view, text, model or edit adds a history entry; a moved cursor does not. */
  navigate(
    change: Partial<Address>,
    push = "view" in change || "text" in change || "model" in change || "edits" in change,
  ): void {
    const stays = this.trace !== null && !("text" in change) && !("model" in change);
    this.address = { ...this.address, ...(stays ? this.cursor : {}), ...change }; // keep the current selection
    this.addressBar.write(formatAddress(this.address), push);
    this.notify();
    if (this.#requestKey() !== this.#opened) void this.open(true);
  }

  /** Select a model. Replace the text by the model's default unless the user has changed it. */
  selectModel(model: string): void {
    const kind = this.kinds[model] ?? "decoder",
      other = kind !== this.kinds[this.model],
      given = this.address.text !== DEFAULT_ADDRESS.text && this.address.text !== this.exampleTexts[this.model];
    const options = Object.fromEntries(Object.entries(this.address.options).filter(([name]) => name !== "target"));
    this.navigate({
      model,
      options,
      layer: -1,
      head: -1,
      query: -1,
      key: -1,
      edits: [],
      ...(given
        ? {}
        : {
            text: this.exampleTexts[model] ?? DEFAULT_ADDRESS.text,
            max_tokens: this.exampleTexts[model] ? this.#seq2seqMaxTokens(model) : DEFAULT_ADDRESS.max_tokens,
          }),
      ...(other ? { view: FIRST_VIEW[kind] } : {}),
    });
  }

  #seq2seqMaxTokens(model: string): number {
    return Math.min(SEQ2SEQ_MAX_TOKENS, this.contexts[model] ?? SEQ2SEQ_MAX_TOKENS);
  }

  /** Set the model's default text if the address has none, and its default view if the address has none. */
  #applyModelDefaults(address: string): void {
    const exampleText = this.exampleTexts[this.model],
      kind = this.kinds[this.model] ?? "decoder";
    if (!exampleText || this.address.text !== DEFAULT_ADDRESS.text) return;
    this.address = {
      ...this.address,
      text: exampleText,
      ...(this.address.max_tokens === DEFAULT_ADDRESS.max_tokens
        ? { max_tokens: this.#seq2seqMaxTokens(this.model) }
        : {}),
      ...(/^#\/[a-z]/.test(address) ? {} : { view: FIRST_VIEW[kind] }),
    };
    this.addressBar.write(formatAddress(this.address), false);
  }

  /** Open a view; a running tour continues from its step. */
  openView(view: string, change: Partial<Address> = {}): void {
    const tour_step = this.address.tour_step < 0 ? -1 : tourStepFor(view, this.address.tour_step);
    this.navigate({ ...change, view, tour_step }, true);
  }

  /** Set or remove (null) options of views. */
  setOptions(change: Record<string, string | null>): void {
    const options = Object.entries({ ...this.address.options, ...change }).filter(
      (one): one is [string, string] => one[1] !== null,
    );
    this.navigate({ options: Object.fromEntries(options) });
  }

  /** Open the trace of the address. `useCache`: use the cached trace if there is one. */
  async open(useCache = false, again = false): Promise<void> {
    this.stop();
    const work = (this.#work = new AbortController());
    const before = this.#opened,
      requestKey = (this.#opened = this.#requestKey());
    this.generated = [];
    const cached = useCache ? await this.#traces.get(requestKey)?.catch(() => undefined) : undefined;
    if (work !== this.#work) return;
    this.error = null;
    if (!cached) {
      this.background?.abort();
      this.notify();
    }
    try {
      if (!this.anatomy || before.split("\n")[0] !== requestKey.split("\n")[0]) {
        this.anatomy = await this.fetch<Anatomy>(this.modelViewPath("anatomy", {}));
        this.focus = {};
      }
      if (work !== this.#work) return;
      if (cached) await this.#show(cached, work.signal);
      else {
        const body = await this.#requestBody(this.edits, work.signal);
        for await (const { event, data } of this.transport.events(
          "/v1/traces",
          { ...body, stream: true },
          work.signal,
        )) {
          if (work !== this.#work) return;
          if (event === "token") this.generated = [...(this.generated ?? []), data as GeneratedToken];
          if (event === "trace") {
            this.#cacheTrace(requestKey, Promise.resolve(data as TraceInfo));
            await this.#show(data as TraceInfo, work.signal);
          }
          this.notify();
        }
      }
    } catch (error) {
      if (work !== this.#work) return;
      // The server evicted a trace that an edit refers to.
      if (isEvicted(error) && !again) return (this.#clearTraces(), this.open(false, true));
      if (!work.signal.aborted) {
        this.trace = null;
        this.#fail(error);
      }
    }
    if (work !== this.#work) return;
    this.#work = null;
    this.generated = null;
    this.notify();
  }

  /**
   * Return the trace of the address under some edits.
   * `generate`: generate this many tokens instead of processing the given target.
   */
  traceWith(edits: Edit[], generate?: number): Promise<TraceInfo> {
    const key = this.#requestKey(edits) + (generate === undefined ? "" : `\n${generate}`),
      cached = this.#traces.get(key);
    if (cached) return cached;
    this.background?.abort();
    const response = () =>
      this.#requestBody(edits, undefined, generate).then((body) => this.transport.post<TraceInfo>("/v1/traces", body));
    return this.#cacheTrace(
      key,
      response().catch((error: unknown) => {
        if (!isEvicted(error)) throw error;
        this.#clearTraces();
        return response();
      }),
    );
  }

  /** The trace without edits; null until `readOriginal` has loaded it. */
  get original(): TraceInfo | null {
    if (this.generated) return null;
    if (!this.edits.length) return this.trace;
    return this.#plain?.key === this.#requestKey([]) ? this.#plain.trace : null;
  }

  async loadOriginal(): Promise<void> {
    const key = this.#requestKey([]);
    if (!this.edits.length || this.#plain?.key === key) return;
    const trace = await this.traceWith([]);
    this.#plain = { key, trace };
    this.notify();
  }

  /** Return the trace of a text, without generation. */
  traceText(prompt: string): Promise<TraceInfo> {
    const key = `${this.model}\n\n${prompt}`;
    return (
      this.#traces.get(key) ??
      this.#cacheTrace(key, this.transport.post<TraceInfo>("/v1/traces", { model: this.model, prompt, max_tokens: 0 }))
    );
  }

  /** Drop all cached traces, after the server evicted one. */
  #clearTraces(): void {
    this.#traces.clear();
    this.#plain = null;
  }

  #cacheTrace(key: string, response: Promise<TraceInfo>): Promise<TraceInfo> {
    this.#traces.delete(key);
    this.#traces.set(key, response);
    response.catch(() => this.#traces.delete(key));
    for (const old of this.#traces.keys()) {
      if (this.#traces.size <= MAX_TRACES) break;
      this.#traces.delete(old);
    }
    return response;
  }

  /** Return the request body for the trace of the address under some edits. */
  async #requestBody(edits: Edit[], signal?: AbortSignal, generate?: number): Promise<Record<string, unknown>> {
    const { text, temperature, seed, options } = this.address,
      kind = this.anatomy?.kind ?? "decoder";
    const seq2seq = generate === undefined && (kind === "encoder-decoder" || kind === "recurrent");
    const target = seq2seq ? options["target"] : undefined; // given, not generated
    const max_tokens = kind === "encoder" || target !== undefined ? 0 : (generate ?? this.address.max_tokens);
    return {
      model: this.model,
      prompt: text,
      max_tokens,
      edits: await toServerEdits(this, edits, signal),
      temperature,
      ...(temperature > 0 ? { seed } : {}),
      ...(target === undefined ? {} : { target }),
    };
  }

  /** Show a trace. Load the initial focus if the address selects no head or key. */
  async #show(trace: TraceInfo, signal: AbortSignal): Promise<void> {
    const { address } = this,
      open = address.layer < 0 || address.head < 0 || address.key < 0;
    if (open && this.anatomy?.kind === "decoder") this.focus = await this.#focus(trace).catch(() => ({}));
    if (!signal.aborted) this.trace = trace;
  }

  /** Fetch the initial focus; see glassformer/inspect/views/focus.py. */
  #focus(trace: TraceInfo): Promise<Focus> {
    const { layer, head, query } = this.address;
    const at = { layer, head, query: Math.min(query, trace.tokens.length - 1) };
    const selected = Object.fromEntries(Object.entries(at).filter(([, value]) => value >= 0));
    return this.fetch<Focus>(`/v1/traces/${trace.id}/focus${queryString(selected)}`);
  }

  /** Stop generation; the server notices the disconnect. */
  stop(): void {
    this.#work?.abort();
    this.#work = null;
    this.generated = null;
  }

  modelViewPath(view: string, parameters: Parameters): string {
    return `/v1/models/${encodeURIComponent(this.model)}/views/${view}${queryString(parameters)}`;
  }

  /** The path of a view of the open trace, or null. */
  traceViewPath(view: string, parameters: Parameters): string | null {
    return this.trace ? `/v1/traces/${this.trace.id}/views/${view}${queryString(parameters)}` : null;
  }

  /** The path of a tensor of the open trace, or null. */
  tensorPath(name: string, parameters: Parameters): string | null {
    return this.trace ? `/v1/traces/${this.trace.id}/tensors/${name}${queryString(parameters)}` : null;
  }

  /** Fetch a path; responses are cached. */
  fetch<T>(path: string, kind: "json" | "tensor" = "json"): Promise<T> {
    const cached = this.#responses.get(path);
    if (cached) return cached as Promise<T>;
    const answer = this.transport[kind]<T>(path) as Promise<T>;
    this.#responses.set(path, answer);
    answer.catch((error: unknown) => {
      this.#responses.delete(path); // a failed request may be repeated
      this.#requestFailed(path, error);
    });
    for (const old of this.#responses.keys()) {
      if (this.#responses.size <= MAX_RESPONSES) break;
      this.#responses.delete(old);
    }
    return answer;
  }

  /** Stream the rows of a view. Not cached. */
  async *rows(path: string, signal: AbortSignal): AsyncGenerator<{ event: string; data: unknown }> {
    try {
      yield* this.transport.events(path, undefined, signal);
    } catch (error) {
      if (!signal.aborted) this.#requestFailed(path, error);
      throw error;
    }
  }

  #requestFailed(path: string, error: unknown): void {
    if (isUnauthorized(error)) this.#fail(error);
    if (this.trace && path.includes(this.trace.id)) this.reopenIfEvicted(error);
  }

  /** Reopen the trace if the error says that the server evicted it. */
  reopenIfEvicted(error: unknown): void {
    if (!isEvicted(error)) return;
    this.trace = null;
    this.#clearTraces();
    void this.open();
  }

  notify(): void {
    this.dispatchEvent(new Event("change"));
  }

  #requestKey(edits = this.edits): string {
    const { text, max_tokens: more, temperature, seed } = this.address;
    return [
      this.model,
      more,
      temperature,
      seed,
      JSON.stringify(edits),
      this.address.options["target"] ?? "",
      text,
    ].join("\n");
  }

  #addressChanged(): void {
    const address = this.addressBar.read();
    if (address === formatAddress(this.address)) return;
    this.address = parseAddress(address);
    this.#applyModelDefaults(address);
    this.notify();
    if (this.#requestKey() !== this.#opened) void this.open(true);
  }

  #fail(error: unknown): void {
    this.needsKey ||= isUnauthorized(error);
    this.error = error instanceof ApiError ? error : new ApiError(String(error), 0);
    this.notify();
  }
}

const isEvicted = (error: unknown): boolean =>
  error instanceof ApiError && error.code !== null && error.code.startsWith("trace_");

function queryString(parameters: Parameters): string {
  const fields = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters))
    if (value !== null && value !== undefined) fields.set(name, String(value));
  const text = fields.toString();
  return text ? `?${text}` : "";
}
