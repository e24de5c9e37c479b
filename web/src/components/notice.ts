/** Notice shown instead of a view that is not available. */
import { html, css, LitElement } from "lit";
import { customElement, property } from "lit/decorators.js";
import { base } from "../style.js";

@customElement("gf-notice")
export class Notice extends LitElement {
  @property() reason = "";
  @property() heading = "Not available";

  static override styles = [
    base,
    css`
      div {
        border: 1px dashed var(--soft);
        border-radius: 10px;
        padding: 1.1rem 1.25rem;
        max-width: 60ch;
      }
      p {
        color: var(--soft);
        margin-top: 0.25rem;
        overflow-wrap: anywhere;
      }
    `,
  ];

  override render() {
    return html`<div role="status">
      <h3>${this.heading}</h3>
      <p>${this.reason}</p>
      <slot></slot>
    </div>`;
  }
}
