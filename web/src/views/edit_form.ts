/** Form that creates an edit at the current selection. The server validates it. */
import { css, html, nothing } from "lit";
import { customElement, state } from "lit/decorators.js";
import "../components/head_picker.js";
import { Resource } from "../resource.js";
import type { Edit } from "../lib/address.js";
import { exact } from "../lib/number.js";
import type { Tensor } from "../lib/tensor.js";
import { describeEdit, describePoint } from "../lib/edit_text.js";
import { inlineToken } from "../components/token.js";
import type { Point, Summary } from "../api_types.js";
import type { Cursor } from "../session.js";
import { ApiError } from "../transport.js";
import { SessionElement } from "../view.js";

interface Operation {
  op: string;
  title: string;
  ends: string[] | null; // points at which it is offered, the default first; null: all
  about: string;
}

const OPERATIONS: Operation[] = [
  {
    op: "ablate",
    title: "ablate",
    ends: ["attn.z", "cross.z", "attn.add", "cross.add", "mlp.add", "rnn.states", "rnn.context"],
    about: "Sets the activation to 0. A head is ablated before Wₒ, where heads are still separate.",
  },
  {
    op: "scale",
    title: "scale",
    ends: ["attn.z", "cross.z", "attn.add", "cross.add", "mlp.add", "resid_post", "rnn.states", "rnn.context"],
    about: "Multiplies the activation by a factor.",
  },
  {
    op: "knockout",
    title: "mask a key",
    ends: ["attn.scores", "cross.scores", "rnn.scores"],
    about:
      "Sets the attention score to −∞, so that the query does not see the key. The other weights are renormalised.",
  },
  {
    op: "add",
    title: "steer",
    ends: ["resid_post", "rnn.states"],
    about: "Adds a direction to the residual stream.",
  },
  {
    op: "patch",
    title: "patch",
    ends: ["resid_pre", "resid_mid", "resid_post", "attn.z", "attn.add", "mlp.add", "rnn.states"],
    about: "Replaces the activation by that of another text, token by token.",
  },
  { op: "replace", title: "set a value", ends: null, about: "Sets one element of a tensor." },
];

@customElement("gf-edit-form")
export class EditForm extends SessionElement {
  @state() private operation = OPERATIONS[0] as Operation;
  @state() private end = "";
  @state() private entered: Record<string, string> = {};
  @state() private error = "";
  @state() private busy = false;
  #names = new Resource<{ points: Point[] }>(this, () =>
    this.session.trace ? `/v1/traces/${this.session.trace.id}/names` : null,
  );
  #summary = new Resource<Summary>(this, () =>
    this.operation.op === "add" ? this.session.traceViewPath("summary", {}) : null,
  );
  #currentValue = new Resource<Tensor>(
    this,
    () =>
      this.operation.op === "replace" && this.#cell
        ? this.session.tensorPath(this.#point, { slice: this.#cell, dtype: "f32" })
        : null,
    "tensor",
    150,
  );

  static override styles = [
    SessionElement.styles,
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
    `,
  ];

  /** The values of the fields: those entered, or defaults. */
  get values(): Record<string, string> {
    const { address, cursor } = this.session,
      summary = this.#summary.value,
      texts = this.entered["of"] === "texts";
    const next = summary?.tokens[cursor.query + 1]?.top ?? summary?.next ?? [];
    const both = { plus: texts ? address.text : (next[1]?.text ?? ""), minus: texts ? "" : (next[0]?.text ?? "") };
    return {
      factor: "0.5",
      strength: texts ? "1" : "60",
      of: "tokens",
      ...both,
      text: address.text,
      value: "0",
      dim: "0",
      at: "",
      ...this.entered,
    };
  }

  /** The points of the selected block by the part of the name after the block number. */
  get #points(): Map<string, Point> {
    const block = this.#block,
      all = this.#names.value?.points ?? [];
    return new Map(all.filter((one) => one.name.startsWith(block)).map((one) => [one.name.slice(block.length), one]));
  }

  /** The prefix of point names; empty if the model has no blocks. */
  get #block(): string {
    return this.session.anatomy?.layers.length ? `blocks.${this.session.cursor.layer}.` : "";
  }

  get #ends(): string[] {
    const points = this.#points;
    return this.operation.ends?.filter((end) => points.has(end)) ?? [...points.keys()];
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

  /** The slice of the element that `replace` sets, or "". */
  get #cell(): string {
    const { cursor } = this.session,
      axes = this.#axes;
    const at = axes.map((axis, i) =>
      axis === "H" || axis === "Hkv"
        ? cursor.head
        : i === 0 || axis === "T"
          ? cursor.query
          : axes[0] === "H" && axis === "S"
            ? cursor.key
            : Math.trunc(Number(this.values["dim"])),
    );
    return axes.length && at.every(Number.isFinite) ? at.join(",") : "";
  }

  override render() {
    const { session } = this,
      error = this.#names.error;
    if (error) return html`<p class="wrong" role="alert">${error.message}</p>`;
    if (!session.trace || !this.#names.value) return nothing;
    const edit = this.#edit();
    return html`<form @submit=${this.#submit} @change=${() => (this.error = "")}>
      <h3>New edit</h3>
      <div class="row ops" role="group" aria-label="Operation">
        ${OPERATIONS.map(
          (one) =>
            html`<button type="button" aria-pressed=${one === this.operation} @click=${() => this.#choose(one)}>
              ${one.title}
            </button>`,
        )}
      </div>
      <p class="small soft">${this.operation.about}${this.#formula()}</p>
      <div class="row fields">${this.#fields()}</div>
      <div class="row">
        <button class="strong" ?disabled=${this.busy || !this.#end}>Add edit</button
        ><span class="small soft">${this.busy ? "generating …" : describeEdit(edit)}</span>
      </div>
      ${this.error ? html`<p class="wrong" role="alert">${this.error}</p>` : nothing}
    </form>`;
  }

  #choose(kind: Operation): void {
    this.operation = kind;
    this.error = "";
    this.#setValue("at", kind.op === "add" ? "-1" : "");
  }

  #formula() {
    if (this.operation.op !== "add") return nothing;
    const { of } = this.values;
    return html` <span class="num"
      >${
        of === "tokens"
          ? "strength × (E[plus] − E[minus]), where E is the embedding table"
          : "strength × (x[plus] − x[minus]), where x is the stream after this block at the last token of each text"
      }</span
    >`;
  }

  #fields() {
    const { op } = this.operation,
      axes = this.#axes,
      heads = axes.includes("H") || axes.includes("Hkv"),
      product = axes.includes("S"),
      { of } = this.values,
      maxStrength = of === "texts" ? 5 : 100;
    return html`${
      this.#block ? html`<gf-head-picker .session=${this.session} ?nohead=${!heads}></gf-head-picker>` : nothing
    }
    ${
      this.#ends.length > 1
        ? this.#select(
            "point",
            this.#end,
            this.#ends.map((end) => [
              end,
              end === "attn.z"
                ? op === "replace"
                  ? end
                  : "attention head"
                : end === "cross.z" && op !== "replace"
                  ? "cross-attention head"
                  : op === "replace"
                    ? end
                    : describePoint(end),
            ]),
            (end) => (this.end = end),
          )
        : nothing
    }
    ${
      product || op === "replace"
        ? html`${this.#positionInput("query", product ? "query" : "token")}${
            product ? this.#positionInput("key", "key") : this.#input("dim", "dim", "number")
          }`
        : nothing
    }
    ${op === "scale" ? this.#input("factor", "times", "value") : nothing}
    ${
      op === "replace"
        ? html`${this.#input("value", "new value", "value")}${
            this.#currentValue.value && !this.#currentValue.pending
              ? html`<span class="small soft"
                  >current value <span class="num now">${exact(this.#currentValue.value.data[0] ?? NaN)}</span></span
                >`
              : this.#currentValue.error
                ? html`<span class="wrong">${this.#currentValue.error.message}</span>`
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
                ["tokens", "difference of two tokens"],
                ["texts", "difference of two texts"],
              ],
              (of) => this.#setValue("of", of),
            )}
            ${this.#input("plus", "plus", of === "tokens" ? "token" : "long")}${this.#input(
              "minus",
              "minus",
              of === "tokens" ? "token" : "long",
            )}
            <label
              >strength
              <input
                type="range"
                name="strength"
                aria-label="strength"
                min=${-maxStrength}
                max=${maxStrength}
                step=${maxStrength / 50}
                .value=${this.values["strength"] ?? ""}
                @input=${this.#onInput}
                @change=${() => void this.#updateStrength()} />
              <input
                name="strength"
                class="value"
                aria-label="strength as a number"
                .value=${this.values["strength"] ?? ""}
                @input=${this.#onInput}
            /></label>`
        : nothing
    }
    ${
      product || op === "replace"
        ? nothing
        : this.#select(
            "position",
            this.values["at"] ?? "",
            [
              ["", "at all tokens"],
              ["here", `at token ${this.session.cursor.query}`],
              ...(op === "patch" ? [] : [["-1", "at generated tokens"] as [string, string]]),
            ],
            (at) => this.#setValue("at", at),
          )
    }
    ${
      this.values["at"] === "here" || op === "replace" || op === "knockout"
        ? html`<span class="small soft"
            >${inlineToken(this.session.tokens[this.session.cursor.query]?.text)}${
              product ? html` → ${inlineToken(this.session.keyTokens[this.session.cursor.key]?.text)}` : nothing
            }</span
          >`
        : nothing
    }
    ${op === "patch" ? this.#input("text", "source text", "long") : nothing}`;
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
          .value=${this.values[name] ?? ""}
          @input=${this.#onInput}
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
        .value=${this.values[name] ?? ""}
        @input=${this.#onInput}
    /></label>`;
  }

  /** Input for the selected query or key. */
  #positionInput(name: "query" | "key", label: string) {
    return html`<label
      >${label}
      <input
        type="number"
        name=${name}
        min="0"
        .value=${String(this.session.cursor[name])}
        @change=${(event: Event) =>
          this.session.navigate({
            [name]: Math.max(0, Math.trunc(Number((event.target as HTMLInputElement).value))),
          } as Partial<Cursor>)}
    /></label>`;
  }

  #onInput = (event: Event): void => {
    const { name, value } = event.target as HTMLInputElement | HTMLTextAreaElement;
    this.#setValue(name, value);
  };

  #setValue(name: string, value: string): void {
    const remaining = Object.entries(this.entered).filter(
      ([one]) => name !== "of" || !["plus", "minus", "strength"].includes(one),
    ); // discard tokens or texts of the other mode
    this.entered = { ...Object.fromEntries(remaining), [name]: value };
  }

  /** The edit that the fields describe. */
  #edit(): Edit {
    const { op } = this.operation,
      { cursor } = this.session,
      axes = this.#axes,
      { at, of, plus, minus, text } = this.values;
    const edit: Edit = { op, point: this.#point };
    if (axes.includes("H") || axes.includes("Hkv")) edit["head"] = cursor.head;
    if (axes.includes("S")) Object.assign(edit, { query: cursor.query, key: cursor.key });
    else if (op === "replace")
      Object.assign(edit, { position: cursor.query, dim: Math.trunc(Number(this.values["dim"])) });
    else if (at) edit["position"] = at === "here" ? cursor.query : -1;
    if (op === "scale") edit["factor"] = number(this.values["factor"]);
    if (op === "replace") edit["value"] = number(this.values["value"]);
    if (op === "add") Object.assign(edit, { of, plus, minus, factor: number(this.values["strength"]) });
    if (op === "patch") edit["from_text"] = text ?? "";
    return edit;
  }

  #submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    await this.#apply();
  };

  /** Apply the new strength if the edit has already been added. */
  async #updateStrength(): Promise<void> {
    if (this.#sameEdit(this.#edit()) >= 0) await this.#apply();
  }

  /** Return the index of the edit of the address that differs only in its strength, or -1. */
  #sameEdit(edit: Edit): number {
    const rest = (one: Edit) =>
      JSON.stringify(
        Object.entries(one)
          .filter(([name]) => name !== "factor" && name !== "value" && name !== "off")
          .sort(),
      );
    return this.session.address.edits.findIndex((one) => rest(one) === rest(edit));
  }

  async #apply(): Promise<void> {
    const { session } = this,
      edit = this.#edit(),
      index = this.#sameEdit(edit);
    const edits = index < 0 ? [...session.address.edits, edit] : session.address.edits.with(index, edit);
    this.busy = true;
    this.error = "";
    try {
      await session.traceWith(edits.filter((one) => !one["off"]));
      session.navigate({ edits });
    } catch (error) {
      this.error = error instanceof ApiError ? error.message : String(error);
    }
    this.busy = false;
  }
}

/** Parse a number. Invalid text is returned unchanged, so that the server reports it. */
function number(text: string | undefined): number | string {
  const value = text?.trim() ? Number(text.replace("−", "-")) : NaN;
  return Number.isFinite(value) ? value : (text ?? "").trim();
}
