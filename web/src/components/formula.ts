/** A formula with numbers. */
import { css, html, LitElement } from "lit";
import { customElement } from "lit/decorators.js";
import { base } from "../style.js";

@customElement("gf-formula")
export class Formula extends LitElement {
  static override styles = [
    base,
    css`
      div {
        background: var(--wash);
        border-radius: 8px;
        padding: 0.55rem 0.85rem;
        font-family: var(--mono);
        font-size: 0.84rem;
        line-height: 1.7;
        overflow-x: auto;
      }
    `,
  ];

  override render() {
    return html`<div><slot></slot></div>`;
  }
}
