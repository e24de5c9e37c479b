/** Of view 13: the same edit in one place after the other, as a heat map that fills as it runs. */
import { css, html, nothing } from "lit";
import { customElement, state } from "lit/decorators.js";
import "../parts/matrix.js";
import "../parts/receipt.js";
import "../parts/refused.js";
import { Ask } from "../ask.js";
import type { Edit } from "../lib/address.js";
import { count, exact, short } from "../lib/number.js";
import { Table } from "../lib/swept.js";
import { inWords, python } from "../lib/words.js";
import type { Pick } from "../parts/matrix.js";
import { quoted, visible } from "../parts/token.js";
import type { Here } from "../session.js";
import type { Attention, Choice, SweepBegin, Swept } from "../shapes.js";
import { Refused } from "../transport.js";
import { Follower } from "../view.js";

const OVER: [string, string][] = [
  ["heads", "every head"],
  ["layers", "every attention and feed-forward"],
  ["positions", "every token"],
  ["cells", "every token in every block"],
];
const OF_SOURCE: [string, string][] = [["positions", "every token of the source"]];
const SIDES: [string, string][] = [
  ["attn", "in the decoder"],
  ["cross", "from source to decoder"],
  ["encoder", "in the encoder"],
];
const OPS: [string, string][] = [
  ["ablate", "Silence"],
  ["scale", "Scale"],
  ["patch", "Patch"],
];

/** A sweep that runs, or has. */
interface Run {
  table: Table;
  about: SweepBegin;
  trace: string;
  python: string;
  text: string; // of a patch
  ended: "" | "done" | "stopped";
}

@customElement("gf-fork-sweep")
export class ForkSweep extends Follower {
  @state() private run: Run | null = null;
  @state() private at: Pick = { row: -1, column: -1 };
  @state() private wrong = "";
  #work: AbortController | null = null;
  #begun = false;
  #likely = new Ask<Choice>(this, () =>
    this.#of === "logits" ? this.session.ofTrace("sampling", { position: this.session.here.query, top: 12 }) : null,
  );

  static override styles = [
    Follower.styles,
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
      .wrong {
        color: var(--key);
        font-size: 0.86rem;
        overflow-wrap: anywhere;
      }
    `,
  ];

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#work?.abort();
  }

  #set(name: string, otherwise: string): string {
    return this.session.place.more[name] ?? otherwise;
  }

  get #of(): string {
    return this.#set("of", "kl");
  }

  /** What can be gone through: a recurrent model has neither heads nor blocks. */
  get #ways(): [string, string][] {
    return this.session.anatomy?.kind === "recurrent" ? OF_SOURCE : OVER;
  }

  get #over(): string {
    const [first] = this.#ways[0] as [string, string],
      asked = this.#set("over", first);
    return this.#ways.some(([value]) => value === asked) ? asked : first;
  }

  /** Whose attention, in a model that reads a source. */
  get #side(): Attention {
    const asked = this.#set("side", "attn");
    return this.session.anatomy?.kind === "encoder-decoder" && (asked === "cross" || asked === "encoder")
      ? asked
      : "attn";
  }

  get #op(): string {
    return this.#set("op", "ablate");
  }

  override willUpdate(): void {
    if (this.#begun || !this.session.trace || !this.session.original) return;
    this.#begun = true;
    if (this.session.place.more["sweep"] === "1") void this.#start(); // a link to a sweep brings it again
  }

  override render() {
    const { session } = this,
      { here } = session,
      { run } = this;
    if (!session.trace) return nothing;
    return html`<div class="stack all">
      <h3>Where does it matter?</h3>
      <form
        class="row"
        @submit=${(event: Event) => {
          event.preventDefault();
          void this.#start();
        }}
      >
        ${this.#choose("op", "What is done in each place", OPS, "ablate")}${this.#choose(
          "over",
          "What is gone through",
          this.#ways,
          this.#ways[0]?.[0] ?? "",
        )}
        ${
          session.anatomy?.kind === "encoder-decoder"
            ? this.#choose("side", "Where it is gone through", SIDES, "attn")
            : nothing
        }
        ${
          this.#op === "scale"
            ? html`times
                <input
                  class="value"
                  aria-label="factor of the sweep"
                  .value=${this.#set("factor", "0.5")}
                  @change=${this.#typed("factor")}
                />`
            : nothing
        }
        ${
          this.#op === "patch"
            ? html`as in
                <textarea
                  rows="2"
                  aria-label="text to patch from"
                  spellcheck="false"
                  .value=${this.#set("from", session.place.text)}
                  @change=${this.#typed("from")}
                ></textarea>`
            : nothing
        }
        <span>one at a time; measure after ${quoted(session.tokens[here.query]?.text)}</span>
        ${this.#choose(
          "of",
          "What is measured",
          [
            ["kl", "how far all moves (KL)"],
            ["logits", "the lead of"],
          ],
          "kl",
        )}
        ${
          this.#of === "logits"
            ? html`${this.#token(
                "lead",
                "target",
                "the likeliest",
              )}<span>over</span>${this.#token("against", "rival", "the next")}`
            : nothing
        }
        ${this.#work && run?.ended === "" ? nothing : html`<button class="strong">Run</button>`}
      </form>
      ${this.wrong ? html`<p class="wrong" role="alert">${this.wrong}</p>` : nothing} ${run ? this.#show(run) : nothing}
    </div>`;
  }

  #choose(name: string, label: string, all: [string, string][], otherwise: string) {
    const now = this.#set(name, otherwise);
    return html`<select
      aria-label=${label}
      @change=${(event: Event) => this.#put(name, (event.target as HTMLSelectElement).value, otherwise)}
    >
      ${all.map(([value, words]) => html`<option value=${value} .selected=${value === now}>${words}</option>`)}
    </select>`;
  }

  #token(name: string, label: string, otherwise: string) {
    const now = this.#set(name, "");
    return html`<select
      aria-label=${label}
      @change=${(event: Event) => this.#put(name, (event.target as HTMLSelectElement).value, "")}
    >
      <option value="" .selected=${now === ""}>${otherwise}</option>
      ${(this.#likely.value?.tokens ?? []).map(
        (one) => html`<option value=${one.id} .selected=${String(one.id) === now}>${visible(one.text)}</option>`,
      )}
    </select>`;
  }

  #put(name: string, value: string, otherwise: string): void {
    this.wrong = "";
    this.session.more({ [name]: value === otherwise ? null : value });
  }

  #typed =
    (name: string) =>
    (event: Event): void =>
      this.#put(name, (event.target as HTMLInputElement | HTMLTextAreaElement).value, "");

  #show(run: Run) {
    const { table, about, ended } = run,
      { session } = this,
      done = table.done,
      cell = table.row(this.at),
      odd = table.odd;
    const stale = session.trace?.id !== run.trace;
    const best = table.most;
    return html`<div class="row run small" role="status">
        ${
          ended === ""
            ? html`<progress max=${about.total} value=${done} aria-label="Progress of the sweep"></progress>`
            : nothing
        }
        <span
          ><span class="num">${count(done)}</span> of
          <span class="num">${count(about.total)}</span>${ended === "stopped" ? ", stopped" : ""}</span
        >
        ${ended === "" ? html`<button @click=${() => this.#stop()}>Stop</button>` : nothing}
        ${
          best
            ? html`<span
                >most:
                <button class="link" @click=${() => this.#pick(table.placeOf(best), table)}>
                  ${inWords(this.#edit(best, run))}
                </button>
                <span class="num">${short(best.change)}</span></span
              >`
            : nothing
        }
        ${odd ? html`<span>× is no number, ${count(odd)} times</span>` : nothing}
        ${stale ? html`<span class="soft">measured before the edits were changed</span>` : nothing}
      </div>
      <gf-matrix
        odd
        meaning="plain"
        most=${table.tokens ? 720 : Math.min(340, 84 * table.columns)}
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
        label="What each edit changes"
        note=${about.target === null ? "nats" : "logits"}
        @pick=${(event: CustomEvent<Pick>) => this.#pick(event.detail, table)}
      ></gf-matrix>
      ${
        cell
          ? html`<div class="row small">
              <span
                >${inWords(this.#edit(cell, run))}:
                ${
                  about.target === null
                    ? html`KL <span class="num picked">${exact(cell.value)}</span> nats`
                    : html`<span class="num picked">${exact(cell.value)}</span> logits, from
                        <span class="num">${short(about.base)}</span>`
                }</span
              >
              <button @click=${() => session.go({ edits: [...session.place.edits, this.#edit(cell, run)] })}>
                Keep this edit
              </button>
            </div>`
          : html`<p class="small soft">
              ${
                table.enters
                  ? "A column is a token"
                  : `A row is a block, a column ${
                      table.tokens ? "a token" : table.heads ? "a head" : "one of its two branches"
                    }`
              };
              ${
                about.target === null
                  ? "the stronger, the further what comes next moves"
                  : "colour puts the token further ahead, grey holds it back"
              }.
              Pick a field to keep its edit.
            </p>`
      }
      <gf-receipt .of=${{ python: run.python, identity: null, error: null }}></gf-receipt>`;
  }

  /** The cursor moves, and with it where one is on the page. */
  #pick(at: Pick, table: Table): void {
    this.at = at;
    const one = table.row(at),
      found: Partial<Here> = {};
    if (one?.layer !== null && one?.layer !== undefined && !table.enters) found.layer = one.layer;
    if (one?.head !== null && one?.head !== undefined) found.head = one.head;
    this.session.go(found);
  }

  #column(table: Table, i: number): string {
    const name = table.columnName(i);
    const { tokens, trace } = this.session,
      some = table.source ? trace?.source?.tokens : tokens;
    return table.tokens ? `token ${name} ${visible(some?.[Number(name)]?.text ?? "")}` : name;
  }

  /** A row's edit, as a link holds it. */
  #edit(row: Swept, run: Run): Edit {
    const { vector, ...edit } = row.edit;
    return vector === undefined ? edit : { ...edit, from_text: run.text };
  }

  #stop(): void {
    this.#work?.abort();
    this.session.more({ sweep: null });
  }

  async #start(): Promise<void> {
    this.#work?.abort();
    const { session } = this,
      { trace, here, anatomy } = session,
      work = (this.#work = session.background = new AbortController());
    if (!trace || !anatomy) return;
    const over = this.#over,
      side = this.#side,
      op = this.#op,
      text = this.#set("from", session.place.text);
    const factor = Number(this.#set("factor", "0.5").replace("−", "-"));
    this.wrong = "";
    this.run = null;
    this.at = { row: -1, column: -1 };
    if (session.place.more["sweep"] !== "1") session.more({ sweep: "1" });
    const how: Record<string, string | number> = {
      over,
      op,
      position: here.query,
      ...(side === "attn" ? {} : { attention: side }),
    };
    if (op === "scale") how["factor"] = Number.isFinite(factor) ? factor : this.#set("factor", "0.5");
    if (this.#of === "logits")
      for (const [name, set] of [
        ["target", "lead"],
        ["rival", "against"],
      ] as const)
        if (this.#set(set, "") !== "") how[name] = Number(this.#set(set, ""));
    try {
      if (this.#of === "logits" && how["target"] === undefined) how["target"] = await this.#likeliest();
      const source = op === "patch" ? { source: (await session.readText(text)).id } : {};
      await this.#follow(
        work,
        trace.id,
        { ...how, ...source },
        new Table(over, anatomy, here.query, side, trace.source?.tokens.length),
        this.#python(how, op === "patch" ? text : null),
        text,
      );
    } catch (error) {
      if (work !== this.#work) return;
      session.lost(error);
      if (!work.signal.aborted) this.wrong = error instanceof Refused ? error.message : String(error);
    }
    if (work !== this.#work) return;
    this.#work = null;
    this.#end("stopped");
    this.requestUpdate();
  }

  /** The rows of a sweep, as they come. */
  async #follow(
    work: AbortController,
    trace: string,
    how: Record<string, string | number>,
    table: Table,
    python: string,
    text: string,
  ): Promise<void> {
    for await (const { event, data } of this.session.transport.events("/v1/sweeps", { trace, ...how }, work.signal)) {
      if (work !== this.#work) return;
      if (event === "begin") this.run = { table, about: data as SweepBegin, trace, python, text, ended: "" };
      if (event === "row") table.add(data as Swept);
      if (event === "done") this.#end("done");
      this.requestUpdate();
    }
  }

  /** The token that is likeliest where the logits are read. */
  async #likeliest(): Promise<number> {
    const path = this.session.ofTrace("sampling", { position: this.session.here.query, top: 12 });
    return path ? ((await this.session.ask<Choice>(path)).tokens[0]?.id ?? 0) : 0;
  }

  #python(how: Record<string, string | number>, text: string | null): string {
    const words = Object.entries(how).map(([name, value]) => `${name}=${python(value)}`);
    if (text !== null) words.push(`source=lm.trace(${python(text)})`);
    return `list(lm.sweep(t, ${words.join(", ")}))`;
  }

  #end(ended: "done" | "stopped"): void {
    if (this.run?.ended === "") this.run = { ...this.run, ended };
  }
}
