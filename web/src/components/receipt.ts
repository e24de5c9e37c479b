/** Provenance line: the Python expression of the data of a view, and the error of an identity that checks it. */
import { css, html, LitElement, nothing } from "lit";
import { customElement, property, state } from "lit/decorators.js";
import { base } from "../style.js";
import { num, power } from "../lib/number.js";
import type { Receipt } from "../api_types.js";

@customElement("gf-receipt")
export class ReceiptLine extends LitElement {
  @property({ attribute: false }) of: Receipt | null = null;
  @state() private copied = false;

  static override styles = [
    base,
    css`
      div {
        display: flex;
        flex-wrap: wrap;
        gap: 0.35rem 0.9rem;
        align-items: center;
        font-size: 0.8rem;
        color: var(--soft);
        border-top: 1px solid var(--line);
        padding-top: 0.65rem;
      }
      code {
        color: var(--ink);
        background: var(--wash);
        border-radius: 5px;
        padding: 0.2rem 0.5rem;
        overflow-wrap: anywhere;
        font-size: 0.78rem;
      }
      button {
        padding: 0.1rem 0.55rem;
        font-size: 0.78rem;
      }
    `,
  ];

  override render() {
    if (!this.of) return nothing;
    const { python, identity, error } = this.of;
    return html`<div>
      <code>${python}</code>
      <button @click=${() => this.#copy(python)} aria-label="Copy this line of Python">
        ${this.copied ? "copied" : "copy"}
      </button>
      ${
        identity === null
          ? nothing
          : html`<span
              >${identity}${
                error === null ? nothing : html` = <span class="num">${num(error) === 0 ? "0" : power(error)}</span>`
              }</span
            >`
      }
    </div>`;
  }

  async #copy(text: string): Promise<void> {
    try {
      await navigator.clipboard.writeText(text);
      this.copied = true;
      setTimeout(() => (this.copied = false), 1500);
    } catch {
      const code = this.renderRoot.querySelector("code");
      if (code) getSelection()?.selectAllChildren(code); // no clipboard access: select the text for Ctrl-C
    }
  }
}
