/** Sweep: applies one edit at many positions in turn, and shows the effects as a heat map that fills as it runs. */
import { css, html, nothing } from "lit";
import { customElement, state } from "lit/decorators.js";
import "../components/matrix.js";
import "../components/receipt.js";
import "../components/notice.js";
import { Resource } from "../resource.js";
import type { Edit } from "../lib/address.js";
import { count, exact, short } from "../lib/number.js";
import { SweepTable } from "../lib/sweep_table.js";
import { describeEdit, pythonLiteral } from "../lib/edit_text.js";
import type { Pick } from "../components/matrix.js";
import { inlineToken, visibleText } from "../components/token.js";
import type { Cursor } from "../session.js";
import type { Attention, Sampling, SweepBegin, SweepResult } from "../api_types.js";
import { ApiError } from "../transport.js";
import { SessionElement } from "../view.js";

const OVER: [string, string][] = [
  ["heads", "every head"],
  ["layers", "every attention and feed-forward layer"],
  ["positions", "every token"],
  ["cells", "every token in every block"],
];
const OVER_SOURCE: [string, string][] = [["positions", "every source token"]];
const SIDES: [string, string][] = [
  ["attn", "decoder self-attention"],
  ["cross", "cross-attention"],
  ["encoder", "encoder self-attention"],
];
const OPS: [string, string][] = [
  ["ablate", "Ablate"],
  ["scale", "Scale"],
  ["patch", "Patch"],
];

/** A running or finished sweep. */
interface Run {
  table: SweepTable;
  info: SweepBegin;
  trace: string;
  python: string;
  text: string; // source text of a patch
  status: "" | "done" | "stopped";
}

@customElement("gf-sweep")
export class Sweep extends SessionElement {
  @state() private run: Run | null = null;
  @state() private at: Pick = { row: -1, column: -1 };
  @state() private error = "";
  #work: AbortController | null = null;
  #started = false;
  #likely = new Resource<Sampling>(this, () =>
    this.#metric === "logits"
      ? this.session.traceViewPath("sampling", { position: this.session.cursor.query, top: 12 })
      : null,
  );

  static override styles = [
    SessionElement.styles,
    css`
      :host {
        border-top: 1px solid var(--line);
        padding-top: 1.4rem;
      }
      form {
        font-size: 0.9rem;
        gap: 0.45rem 0.5rem;
        align-items: center;
      }
      select,
      form input {
        padding: 0.12rem 0.35rem;
        font-size: 0.86rem;
      }
      form select {
        max-width: 100%;
      }
      input.value {
        width: 4.5rem;
        font-family: var(--mono);
      }
      textarea {
        flex: 1 1 18rem;
        font-size: 0.84rem;
        line-height: 1.4;
        field-sizing: content;
        resize: none;
        max-height: 8rem;
      }
      .all {
        gap: 0.8rem;
      }
      .link {
        border: 0;
        background: none;
        padding: 0;
        text-align: left;
        text-decoration: underline;
        text-underline-offset: 2px;
        font-size: inherit;
      }
      progress {
        width: 9rem;
        height: 0.5rem;
        accent-color: var(--ink);
      }
      .run {
        align-items: center;
        min-height: 2rem;
      }
    `,
  ];

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#work?.abort();
  }

  #option(name: string, otherwise: string): string {
    return this.session.address.options[name] ?? otherwise;
  }

  get #metric(): string {
    return this.#option("metric", "kl");
  }

  /** The dimensions to sweep over. Recurrent models have neither heads nor blocks. */
  get #overChoices(): [string, string][] {
    return this.session.anatomy?.kind === "recurrent" ? OVER_SOURCE : OVER;
  }

  get #over(): string {
    const [first] = this.#overChoices[0] as [string, string],
      option = this.#option("over", first);
    return this.#overChoices.some(([value]) => value === option) ? option : first;
  }

  /** Which attention, in an encoder-decoder model. */
  get #side(): Attention {
    const option = this.#option("sweep_attention", "attn");
    return this.session.anatomy?.kind === "encoder-decoder" && (option === "cross" || option === "encoder")
      ? option
      : "attn";
  }

  get #op(): string {
    return this.#option("op", "ablate");
  }

  override willUpdate(): void {
    if (this.#started || !this.session.trace || !this.session.original) return;
    this.#started = true;
    if (this.session.address.options["sweep"] === "1") void this.#start(); // run the sweep of a link
  }

  override render() {
    const { session } = this,
      { cursor } = session,
      { run } = this;
    if (!session.trace) return nothing;
    return html`<div class="stack all">
      <h3>Sweep</h3>
      <form
        class="row"
        @submit=${(event: Event) => {
          event.preventDefault();
          void this.#start();
        }}
      >
        ${this.#choose("op", "Operation of the sweep", OPS, "ablate")}${this.#choose(
          "over",
          "Sweep over",
          this.#overChoices,
          this.#overChoices[0]?.[0] ?? "",
        )}
        ${
          session.anatomy?.kind === "encoder-decoder"
            ? this.#choose("sweep_attention", "Attention of the sweep", SIDES, "attn")
            : nothing
        }
        ${
          this.#op === "scale"
            ? html`by
                <input
                  class="value"
                  aria-label="factor of the sweep"
                  .value=${this.#option("factor", "0.5")}
                  @change=${this.#typed("factor")}
                />`
            : nothing
        }
        ${
          this.#op === "patch"
            ? html`from
                <textarea
                  rows="2"
                  aria-label="text to patch from"
                  spellcheck="false"
                  .value=${this.#option("patch_text", session.address.text)}
                  @change=${this.#typed("patch_text")}
                ></textarea>`
            : nothing
        }
        <span>one at a time; after ${inlineToken(session.tokens[cursor.query]?.text)} measure</span>
        ${this.#choose(
          "metric",
          "Metric",
          [
            ["kl", "KL divergence"],
            ["logits", "logit difference of"],
          ],
          "kl",
        )}
        ${
          this.#metric === "logits"
            ? html`${this.#token(
                "target_token",
                "target",
                "most likely",
              )}<span>and</span>${this.#token("rival_token", "rival", "second most likely")}`
            : nothing
        }
        ${this.#work && run?.status === "" ? nothing : html`<button class="strong">Run</button>`}
      </form>
      ${this.error ? html`<p class="wrong" role="alert">${this.error}</p>` : nothing} ${run ? this.#show(run) : nothing}
    </div>`;
  }

  #choose(name: string, label: string, all: [string, string][], otherwise: string) {
    const now = this.#option(name, otherwise);
    return html`<select
      aria-label=${label}
      @change=${(event: Event) => this.#setOption(name, (event.target as HTMLSelectElement).value, otherwise)}
    >
      ${all.map(([value, label]) => html`<option value=${value} .selected=${value === now}>${label}</option>`)}
    </select>`;
  }

  #token(name: string, label: string, otherwise: string) {
    const now = this.#option(name, "");
    return html`<select
      aria-label=${label}
      @change=${(event: Event) => this.#setOption(name, (event.target as HTMLSelectElement).value, "")}
    >
      <option value="" .selected=${now === ""}>${otherwise}</option>
      ${(this.#likely.value?.tokens ?? []).map(
        (one) => html`<option value=${one.id} .selected=${String(one.id) === now}>${visibleText(one.text)}</option>`,
      )}
    </select>`;
  }

  #setOption(name: string, value: string, otherwise: string): void {
    this.error = "";
    this.session.setOptions({ [name]: value === otherwise ? null : value });
  }

  #typed =
    (name: string) =>
    (event: Event): void =>
      this.#setOption(name, (event.target as HTMLInputElement | HTMLTextAreaElement).value, "");

  #show(run: Run) {
    const { table, info, status } = run,
      { session } = this,
      done = table.done,
      cell = table.row(this.at),
      nonFinite = table.nonFinite;
    const stale = session.trace?.id !== run.trace;
    const largest = table.largest;
    return html`<div class="row run small" role="status">
        ${
          status === ""
            ? html`<progress max=${info.total} value=${done} aria-label="Progress of the sweep"></progress>`
            : nothing
        }
        <span
          ><span class="num">${count(done)}</span> of
          <span class="num">${count(info.total)}</span>${status === "stopped" ? ", stopped" : ""}</span
        >
        ${status === "" ? html`<button @click=${() => this.#stop()}>Stop</button>` : nothing}
        ${
          largest
            ? html`<span
                >largest effect:
                <button class="link" @click=${() => this.#pick(table.cellOf(largest), table)}>
                  ${describeEdit(this.#edit(largest, run))}
                </button>
                <span class="num">${short(largest.change)}</span></span
              >`
            : nothing
        }
        ${nonFinite ? html`<span>× marks ${count(nonFinite)} non-finite values</span>` : nothing}
        ${stale ? html`<span class="soft">outdated: the edits have changed</span>` : nothing}
      </div>
      <gf-matrix
        marksNonFinite
        meaning="plain"
        maxWidth=${table.tokens ? 720 : Math.min(340, 84 * table.columns)}
        rowHeight=${table.heads ? 0 : 26}
        .data=${table.data}
        .rows=${table.rows}
        .columns=${table.columns}
        .row=${this.at.row}
        .column=${this.at.column}
        rowName=""
        columnName=""
        .rowLabel=${(i: number) => table.rowName(i)}
        .columnLabel=${(i: number) => this.#column(table, i)}
        label="Effect of each edit"
        note=${info.target === null ? "nats" : "logits"}
        @pick=${(event: CustomEvent<Pick>) => this.#pick(event.detail, table)}
      ></gf-matrix>
      ${
        cell
          ? html`<div class="row small">
              <span
                >${describeEdit(this.#edit(cell, run))}:
                ${
                  info.target === null
                    ? html`KL <span class="num picked">${exact(cell.value)}</span> nats`
                    : html`<span class="num picked">${exact(cell.value)}</span> logits, unedited
                        <span class="num">${short(info.base)}</span>`
                }</span
              >
              <button @click=${() => session.navigate({ edits: [...session.address.edits, this.#edit(cell, run)] })}>
                Keep this edit
              </button>
            </div>`
          : html`<p class="small soft">
              ${
                table.embedding
                  ? "Columns are tokens."
                  : `Rows are blocks, columns are ${
                      table.tokens ? "tokens" : table.heads ? "heads" : "attention and feed-forward"
                    }.`
              }
              ${
                info.target === null
                  ? "Stronger colours mean larger changes of the next-token probabilities."
                  : "Coloured cells increase the logit difference, grey cells decrease it."
              }
              Select a cell to keep its edit.
            </p>`
      }
      <gf-receipt .of=${{ python: run.python, identity: null, error: null }}></gf-receipt>`;
  }

  /** Move the cursor and the selection. */
  #pick(at: Pick, table: SweepTable): void {
    this.at = at;
    const one = table.row(at),
      found: Partial<Cursor> = {};
    if (one?.layer !== null && one?.layer !== undefined && !table.embedding) found.layer = one.layer;
    if (one?.head !== null && one?.head !== undefined) found.head = one.head;
    this.session.navigate(found);
  }

  #column(table: SweepTable, i: number): string {
    const name = table.columnName(i);
    const { tokens, trace } = this.session,
      some = table.source ? trace?.source?.tokens : tokens;
    return table.tokens ? `token ${name} ${visibleText(some?.[Number(name)]?.text ?? "")}` : name;
  }

  /** Return the edit of a result in the form that links use. */
  #edit(row: SweepResult, run: Run): Edit {
    const { vector, ...edit } = row.edit;
    return vector === undefined ? edit : { ...edit, from_text: run.text };
  }

  #stop(): void {
    this.#work?.abort();
    this.session.setOptions({ sweep: null });
  }

  async #start(): Promise<void> {
    this.#work?.abort();
    const { session } = this,
      { trace, cursor, anatomy } = session,
      work = (this.#work = session.background = new AbortController());
    if (!trace || !anatomy) return;
    const over = this.#over,
      side = this.#side,
      op = this.#op,
      text = this.#option("patch_text", session.address.text);
    const factor = Number(this.#option("factor", "0.5").replace("−", "-"));
    this.error = "";
    this.run = null;
    this.at = { row: -1, column: -1 };
    if (session.address.options["sweep"] !== "1") session.setOptions({ sweep: "1" });
    const parameters: Record<string, string | number> = {
      over,
      op,
      position: cursor.query,
      ...(side === "attn" ? {} : { attention: side }),
    };
    if (op === "scale") parameters["factor"] = Number.isFinite(factor) ? factor : this.#option("factor", "0.5");
    if (this.#metric === "logits")
      for (const [name, set] of [
        ["target", "target_token"],
        ["rival", "rival_token"],
      ] as const)
        if (this.#option(set, "") !== "") parameters[name] = Number(this.#option(set, ""));
    try {
      if (this.#metric === "logits" && parameters["target"] === undefined)
        parameters["target"] = await this.#likeliest();
      const source = op === "patch" ? { source: (await session.traceText(text)).id } : {};
      await this.#receive(
        work,
        trace.id,
        { ...parameters, ...source },
        new SweepTable(over, anatomy, cursor.query, side, trace.source?.tokens.length),
        this.#python(parameters, op === "patch" ? text : null),
        text,
      );
    } catch (error) {
      if (work !== this.#work) return;
      session.reopenIfEvicted(error);
      if (!work.signal.aborted) this.error = error instanceof ApiError ? error.message : String(error);
    }
    if (work !== this.#work) return;
    this.#work = null;
    this.#end("stopped");
    this.requestUpdate();
  }

  /** Receive the results of a sweep. */
  async #receive(
    work: AbortController,
    trace: string,
    parameters: Record<string, string | number>,
    table: SweepTable,
    python: string,
    text: string,
  ): Promise<void> {
    for await (const { event, data } of this.session.transport.events(
      "/v1/sweeps",
      { trace, ...parameters },
      work.signal,
    )) {
      if (work !== this.#work) return;
      if (event === "begin") this.run = { table, info: data as SweepBegin, trace, python, text, status: "" };
      if (event === "row") table.add(data as SweepResult);
      if (event === "done") this.#end("done");
      this.requestUpdate();
    }
  }

  /** Return the most likely token at the measured position. */
  async #likeliest(): Promise<number> {
    const path = this.session.traceViewPath("sampling", { position: this.session.cursor.query, top: 12 });
    return path ? ((await this.session.fetch<Sampling>(path)).tokens[0]?.id ?? 0) : 0;
  }

  #python(parameters: Record<string, string | number>, text: string | null): string {
    const args = Object.entries(parameters).map(([name, value]) => `${name}=${pythonLiteral(value)}`);
    if (text !== null) args.push(`source=lm.trace(${pythonLiteral(text)})`, `align="start"`);
    return `list(lm.sweep(t, ${args.join(", ")}))`;
  }

  #end(status: "done" | "stopped"): void {
    if (this.run?.status === "") this.run = { ...this.run, status };
  }
}
