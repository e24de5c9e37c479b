/** Of view 13: making an edit. Where it is done is where one is on the page; the server says what cannot be. */
import { css, html, nothing } from "lit";
import { customElement, state } from "lit/decorators.js";
import "../parts/where.js";
import { Ask } from "../ask.js";
import type { Edit } from "../lib/address.js";
import { exact } from "../lib/number.js";
import type { Tensor } from "../lib/tensor.js";
import { inWords, placeOf } from "../lib/words.js";
import { quoted } from "../parts/token.js";
import type { Point, Summary } from "../shapes.js";
import type { Here } from "../session.js";
import { Refused } from "../transport.js";
import { Follower } from "../view.js";

interface Kind {
  op: string;
  title: string;
  ends: string[] | null; // of points in the block that it is offered at, the usual one first; null: all
  about: string;
}

const KINDS: Kind[] = [
  {
    op: "ablate",
    title: "silence",
    ends: ["attn.z", "cross.z", "attn.add", "cross.add", "mlp.add", "rnn.states", "rnn.context"],
    about: "It becomes 0: for a head before Wₒ, where heads are still apart.",
  },
  {
    op: "scale",
    title: "scale",
    ends: ["attn.z", "cross.z", "attn.add", "cross.add", "mlp.add", "resid_post", "rnn.states", "rnn.context"],
    about: "It is multiplied by a number.",
  },
  {
    op: "knockout",
    title: "hide a key",
    ends: ["attn.scores", "cross.scores", "rnn.scores"],
    about: "A query no longer sees a key: the score becomes −∞, and the other keys share what it had.",
  },
  {
    op: "add",
    title: "steer",
    ends: ["resid_post", "rnn.states"],
    about: "A direction is added to the residual stream.",
  },
  {
    op: "patch",
    title: "patch",
    ends: ["resid_pre", "resid_mid", "resid_post", "attn.z", "attn.add", "mlp.add", "rnn.states"],
    about: "It becomes what it was when the model read another text, token by token.",
  },
  { op: "replace", title: "set a number", ends: null, about: "One number of one tensor becomes another." },
];

@customElement("gf-fork-maker")
export class ForkMaker extends Follower {
  @state() private kind = KINDS[0] as Kind;
  @state() private end = "";
  @state() private typed: Record<string, string> = {};
  @state() private wrong = "";
  @state() private busy = false;
  #names = new Ask<{ points: Point[] }>(this, () =>
    this.session.trace ? `/v1/traces/${this.session.trace.id}/names` : null,
  );
  #summary = new Ask<Summary>(this, () => (this.kind.op === "add" ? this.session.ofTrace("summary", {}) : null));
  #now = new Ask<Tensor>(
    this,
    () =>
      this.kind.op === "replace" && this.#cell
        ? this.session.tensor(this.#point, { slice: this.#cell, dtype: "f32" })
        : null,
    "tensor",
    150,
  );

  static override styles = [
    Follower.styles,
    css`
      :host {
        border-top: 1px solid var(--line);
        padding-top: 1.4rem;
      }
      .ops {
        gap: 0.35rem;
      }
      form {
        display: grid;
        gap: 0.7rem;
      }
      .fields {
        gap: 0.5rem 1.1rem;
        align-items: center;
        font-size: 0.86rem;
        min-height: 2rem;
      }
      label {
        display: inline-flex;
        gap: 0.4rem;
        align-items: center;
        font-size: 0.82rem;
        color: var(--soft);
      }
      label > select,
      label > input {
        color: var(--ink);
        padding: 0.12rem 0.35rem;
        font-size: 0.84rem;
      }
      input[type="number"] {
        width: 4.4rem;
      }
      input.value {
        width: 5.5rem;
        font-family: var(--mono);
      }
      input.token {
        width: 8rem;
      }
      p {
        max-width: none;
      }
      label.wide {
        flex: 1 1 100%;
      }
      textarea {
        flex: 1;
        font-size: 0.84rem;
        line-height: 1.4;
        color: var(--ink);
        field-sizing: content;
        resize: none;
        max-height: 8rem;
      }
      input[type="range"] {
        padding: 0;
        width: 9rem;
        accent-color: var(--ink);
      }
      .wrong {
        color: var(--key);
        font-size: 0.86rem;
        overflow-wrap: anywhere;
      }
    `,
  ];

  /** What stands in the fields: what was typed, or else what is worth trying here. */
  get filled(): Record<string, string> {
    const { place, here } = this.session,
      summary = this.#summary.value,
      texts = this.typed["of"] === "texts";
    const next = summary?.tokens[here.query + 1]?.top ?? summary?.next ?? [];
    const both = { plus: texts ? place.text : (next[1]?.text ?? ""), minus: texts ? "" : (next[0]?.text ?? "") };
    return {
      factor: "0.5",
      strength: texts ? "1" : "60",
      of: "tokens",
      ...both,
      text: place.text,
      value: "0",
      dim: "0",
      at: "",
      ...this.typed,
    };
  }

  /** The points of the block where one is, by what stands behind its number. */
  get #points(): Map<string, Point> {
    const block = this.#block,
      all = this.#names.value?.points ?? [];
    return new Map(all.filter((one) => one.name.startsWith(block)).map((one) => [one.name.slice(block.length), one]));
  }

  /** What stands before the points' names; nothing where a model has no blocks. */
  get #block(): string {
    return this.session.anatomy?.layers.length ? `blocks.${this.session.here.layer}.` : "";
  }

  get #ends(): string[] {
    const points = this.#points;
    return this.kind.ends?.filter((end) => points.has(end)) ?? [...points.keys()];
  }

  get #end(): string {
    const ends = this.#ends;
    return ends.includes(this.end) ? this.end : (ends[0] ?? "");
  }

  get #point(): string {
    return `${this.#block}${this.#end}`;
  }

  get #axes(): string[] {
    return this.#points.get(this.#end)?.axes ?? [];
  }

  /** The slice of the one number that `replace` is of; empty while there is none. */
  get #cell(): string {
    const { here } = this.session,
      axes = this.#axes;
    const at = axes.map((axis, i) =>
      axis === "H" || axis === "Hkv"
        ? here.head
        : i === 0 || axis === "T"
          ? here.query
          : axes[0] === "H" && axis === "S"
            ? here.key
            : Math.trunc(Number(this.filled["dim"])),
    );
    return axes.length && at.every(Number.isFinite) ? at.join(",") : "";
  }

  override render() {
    const { session } = this,
      error = this.#names.error;
    if (error) return html`<p class="wrong" role="alert">${error.message}</p>`;
    if (!session.trace || !this.#names.value) return nothing;
    const edit = this.#edit();
    return html`<form @submit=${this.#try} @change=${() => (this.wrong = "")}>
      <h3>Change something</h3>
      <div class="row ops" role="group" aria-label="What is done">
        ${KINDS.map(
          (one) =>
            html`<button type="button" aria-pressed=${one === this.kind} @click=${() => this.#choose(one)}>
              ${one.title}
            </button>`,
        )}
      </div>
      <p class="small soft">${this.kind.about}${this.#formula()}</p>
      <div class="row fields">${this.#fields()}</div>
      <div class="row">
        <button class="strong" ?disabled=${this.busy || !this.#end}>Make this edit</button
        ><span class="small soft">${this.busy ? "writing …" : inWords(edit)}</span>
      </div>
      ${this.wrong ? html`<p class="wrong" role="alert">${this.wrong}</p>` : nothing}
    </form>`;
  }

  #choose(kind: Kind): void {
    this.kind = kind;
    this.wrong = "";
    this.#fill("at", kind.op === "add" ? "-1" : "");
  }

  #formula() {
    if (this.kind.op !== "add") return nothing;
    const { of } = this.filled;
    return html` <span class="num"
      >${
        of === "tokens"
          ? "strength × (E[this] − E[that]), E the embedding table"
          : "strength × (x of this text − x of that one), x the stream after this block at each text's last token"
      }</span
    >`;
  }

  #fields() {
    const { op } = this.kind,
      axes = this.#axes,
      heads = axes.includes("H") || axes.includes("Hkv"),
      product = axes.includes("S"),
      { of } = this.filled,
      most = of === "texts" ? 5 : 100;
    return html`${this.#block ? html`<gf-where .session=${this.session} ?nohead=${!heads}></gf-where>` : nothing}
    ${
      this.#ends.length > 1
        ? this.#select(
            "what",
            this.#end,
            this.#ends.map((end) => [
              end,
              end === "attn.z"
                ? op === "replace"
                  ? end
                  : "the head"
                : end === "cross.z" && op !== "replace"
                  ? "the head, to the source"
                  : op === "replace"
                    ? end
                    : placeOf(end),
            ]),
            (end) => (this.end = end),
          )
        : nothing
    }
    ${
      product || op === "replace"
        ? html`${this.#place("query", product ? "query" : "token")}${
            product ? this.#place("key", "key") : this.#input("dim", "number", "number")
          }`
        : nothing
    }
    ${op === "scale" ? this.#input("factor", "times", "value") : nothing}
    ${
      op === "replace"
        ? html`${this.#input("value", "becomes", "value")}${
            this.#now.value && !this.#now.pending
              ? html`<span class="small soft"
                  >now <span class="num now">${exact(this.#now.value.data[0] ?? NaN)}</span></span
                >`
              : this.#now.error
                ? html`<span class="wrong">${this.#now.error.message}</span>`
                : nothing
          }`
        : nothing
    }
    ${
      op === "add"
        ? html`${this.#select(
              "of",
              of ?? "",
              [
                ["tokens", "two tokens"],
                ["texts", "two texts"],
              ],
              (of) => this.#fill("of", of),
            )}
            ${this.#input("plus", "this", of === "tokens" ? "token" : "long")}${this.#input(
              "minus",
              "less that",
              of === "tokens" ? "token" : "long",
            )}
            <label
              >strength
              <input
                type="range"
                name="strength"
                aria-label="strength"
                min=${-most}
                max=${most}
                step=${most / 50}
                .value=${this.filled["strength"] ?? ""}
                @input=${this.#typed}
                @change=${() => void this.#again()} />
              <input
                name="strength"
                class="value"
                aria-label="strength as a number"
                .value=${this.filled["strength"] ?? ""}
                @input=${this.#typed}
            /></label>`
        : nothing
    }
    ${
      product || op === "replace"
        ? nothing
        : this.#select(
            "where",
            this.filled["at"] ?? "",
            [
              ["", "at all tokens"],
              ["here", `at token ${this.session.here.query}`],
              ...(op === "patch" ? [] : [["-1", "as it writes"] as [string, string]]),
            ],
            (at) => this.#fill("at", at),
          )
    }
    ${
      this.filled["at"] === "here" || op === "replace" || op === "knockout"
        ? html`<span class="small soft"
            >${quoted(this.session.tokens[this.session.here.query]?.text)}${
              product ? html` → ${quoted(this.session.keys[this.session.here.key]?.text)}` : nothing
            }</span
          >`
        : nothing
    }
    ${op === "patch" ? this.#input("text", "the other text", "long") : nothing}`;
  }

  #select(label: string, now: string, all: [string, string][], chosen: (value: string) => void) {
    return html`<select
      aria-label=${label}
      @change=${(event: Event) => chosen((event.target as HTMLSelectElement).value)}
    >
      ${all.map(([value, words]) => html`<option value=${value} .selected=${value === now}>${words}</option>`)}
    </select>`;
  }

  #input(name: string, label: string, kind: string) {
    if (kind === "long")
      return html`<label class="wide"
        >${label}
        <textarea
          name=${name}
          rows="2"
          spellcheck="false"
          .value=${this.filled[name] ?? ""}
          @input=${this.#typed}
        ></textarea>
      </label>`;
    return html`<label
      >${label}
      <input
        name=${name}
        type=${kind === "number" ? "number" : "text"}
        class=${kind}
        spellcheck="false"
        autocomplete="off"
        .value=${this.filled[name] ?? ""}
        @input=${this.#typed}
    /></label>`;
  }

  /** Where one is, typed. */
  #place(name: "query" | "key", label: string) {
    return html`<label
      >${label}
      <input
        type="number"
        name=${name}
        min="0"
        .value=${String(this.session.here[name])}
        @change=${(event: Event) =>
          this.session.go({
            [name]: Math.max(0, Math.trunc(Number((event.target as HTMLInputElement).value))),
          } as Partial<Here>)}
    /></label>`;
  }

  #typed = (event: Event): void => {
    const { name, value } = event.target as HTMLInputElement | HTMLTextAreaElement;
    this.#fill(name, value);
  };

  #fill(name: string, value: string): void {
    const kept = Object.entries(this.typed).filter(
      ([one]) => name !== "of" || !["plus", "minus", "strength"].includes(one),
    ); // tokens are no texts
    this.typed = { ...Object.fromEntries(kept), [name]: value };
  }

  /** The edit that the fields say. */
  #edit(): Edit {
    const { op } = this.kind,
      { here } = this.session,
      axes = this.#axes,
      { at, of, plus, minus, text } = this.filled;
    const edit: Edit = { op, point: this.#point };
    if (axes.includes("H") || axes.includes("Hkv")) edit["head"] = here.head;
    if (axes.includes("S")) Object.assign(edit, { query: here.query, key: here.key });
    else if (op === "replace")
      Object.assign(edit, { position: here.query, dim: Math.trunc(Number(this.filled["dim"])) });
    else if (at) edit["position"] = at === "here" ? here.query : -1;
    if (op === "scale") edit["factor"] = number(this.filled["factor"]);
    if (op === "replace") edit["value"] = number(this.filled["value"]);
    if (op === "add") Object.assign(edit, { of, plus, minus, factor: number(this.filled["strength"]) });
    if (op === "patch") edit["from_text"] = text ?? "";
    return edit;
  }

  #try = async (event: Event): Promise<void> => {
    event.preventDefault();
    await this.#make();
  };

  /** The slider moves a direction that is added already. */
  async #again(): Promise<void> {
    if (this.#twin(this.#edit()) >= 0) await this.#make();
  }

  /** Which edit of the address this one is, but for how much. */
  #twin(edit: Edit): number {
    const rest = (one: Edit) =>
      JSON.stringify(
        Object.entries(one)
          .filter(([name]) => name !== "factor" && name !== "value" && name !== "off")
          .sort(),
      );
    return this.session.place.edits.findIndex((one) => rest(one) === rest(edit));
  }

  async #make(): Promise<void> {
    const { session } = this,
      edit = this.#edit(),
      twin = this.#twin(edit);
    const edits = twin < 0 ? [...session.place.edits, edit] : session.place.edits.with(twin, edit);
    this.busy = true;
    this.wrong = "";
    try {
      await session.read(edits.filter((one) => !one["off"]));
      session.go({ edits });
    } catch (error) {
      this.wrong = error instanceof Refused ? error.message : String(error);
    }
    this.busy = false;
  }
}

/** A number as it was typed; what is none is sent as it is, and the server says so. */
function number(text: string | undefined): number | string {
  const value = text?.trim() ? Number(text.replace("−", "-")) : NaN;
  return Number.isFinite(value) ? value : (text ?? "").trim();
}
