/** Causal test: generates again under one edit, and shows both texts. Attention weights alone do not prove a cause. */
import { css, html, nothing } from "lit";
import { customElement, property, state } from "lit/decorators.js";
import type { Edit } from "../lib/address.js";
import type { TraceInfo, TraceToken } from "../api_types.js";
import { ApiError } from "../transport.js";
import { SessionElement } from "../view.js";
import { visibleText } from "./token.js";

@customElement("gf-causal-test")
export class CausalTest extends SessionElement {
  @property({ attribute: false }) edit: Edit | null = null;
  @property() label = "";
  @state() private result: { key: string; before: TraceInfo; trace: TraceInfo } | null = null;
  @state() private busy = false;
  @state() private error = "";

  static override styles = [
    SessionElement.styles,
    css`
      div.box {
        border: 1px solid var(--line);
        border-radius: 10px;
        padding: 0.8rem 1rem;
        display: grid;
        gap: 0.6rem;
        background: var(--card);
      }
      dl {
        display: grid;
        grid-template-columns: 5.4rem minmax(0, 1fr);
        gap: 0.3rem 0.8rem;
        font-size: 0.84rem;
      }
      dt {
        color: var(--soft);
      }
      dd {
        font-family: var(--mono);
        font-size: 0.8rem;
        overflow-wrap: anywhere;
      }
      mark {
        background: color-mix(in srgb, var(--key) 22%, transparent);
        color: inherit;
        border-radius: 3px;
      }
    `,
  ];

  get #key(): string {
    return `${this.session.trace?.id} ${JSON.stringify(this.edit)}`;
  }

  override render() {
    const { trace } = this.session,
      found = this.result?.key === this.#key ? this.result : null;
    if (!this.edit || !trace || !this.session.live) return nothing;
    const encoder = this.session.anatomy?.kind === "encoder"; // cannot generate
    return html`<div class="box">
      <div class="row">
        <h3>Causal test</h3>
        ${
          encoder
            ? html`<button @click=${this.#keepEdit}>${this.label}</button>`
            : html`<button ?disabled=${this.busy} @click=${this.#run}>${this.label}, generate again</button>`
        }
      </div>
      ${this.error ? html`<p class="small" role="status">${this.error}</p>` : nothing}
      ${found ? this.#comparison(found.before, found.trace) : nothing}
    </div>`;
  }

  #comparison(before: TraceInfo, after: TraceInfo) {
    const original = generatedTokens(before),
      edited = generatedTokens(after),
      same = original.length === edited.length && original.every((token, i) => token.id === edited[i]?.id);
    const tokens = (some: TraceToken[], others: TraceToken[]) =>
      some.map((token, i) =>
        others[i]?.id === token.id ? visibleText(token.text) : html`<mark>${visibleText(token.text)}</mark>`,
      );
    return html`<dl role="status">
        <dt>original</dt>
        <dd>${tokens(original, edited)}</dd>
        <dt>edited</dt>
        <dd>${tokens(edited, original)}</dd>
      </dl>
      <p class="small">
        ${
          original.length === 0
            ? "There is no generated text to compare. Increase max tokens."
            : same
              ? "The text is unchanged: the edit has no effect on it."
              : "The text changed: the edit has an effect on it."
        }
        <button @click=${this.#keepEdit}>Keep this edit</button>
      </p>`;
  }

  #keepEdit = (): void => {
    if (this.edit) this.session.navigate({ edits: [...this.session.address.edits, this.edit] });
  };

  #run = async (): Promise<void> => {
    const { session, edit } = this,
      key = this.#key,
      { address, trace: open } = session;
    if (!edit || !open) return;
    this.busy = true;
    this.error = "";
    const given = open.target !== undefined && address.options["target"] !== undefined; // the target was not generated
    const maxTokens = !given
      ? undefined
      : address.max_tokens > 0
        ? Math.max(address.max_tokens, open.tokens.length)
        : 0;
    try {
      const before = given ? await session.traceWith(session.edits, maxTokens) : open;
      this.result = { key, before, trace: await session.traceWith([...session.edits, edit], maxTokens) };
    } catch (error) {
      this.error = error instanceof ApiError ? error.message : String(error);
    }
    this.busy = false;
  };
}

/** Return the generated tokens of a trace. */
const generatedTokens = (trace: TraceInfo): TraceToken[] => trace.target?.tokens ?? trace.tokens.slice(trace.n_prompt);
