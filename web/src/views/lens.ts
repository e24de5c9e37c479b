/** Next token view: logit lens, logit attribution, and sampling. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "../components/notice.js";
import "./lens_attribution.js";
import "./lens_grid.js";
import "./lens_sampling.js";
import { inlineToken } from "../components/token.js";
import { SessionElement } from "../view.js";

@customElement("gf-view-lens")
export class LensView extends SessionElement {
  static override styles = [
    SessionElement.styles,
    css`
      section {
        gap: 1.9rem;
      }
    `,
  ];

  override render() {
    const { session } = this;
    return html`<section class="stack">
      <div class="stack close">
        <h2>Next-token prediction</h2>
        <p>After ${inlineToken(session.tokens[session.cursor.query]?.text)}, token ${session.cursor.query}.</p>
      </div>
      ${
        session.trace
          ? html`<gf-lens-grid .session=${session}></gf-lens-grid>
              <gf-lens-attribution .session=${session}></gf-lens-attribution>
              <gf-lens-sampling .session=${session}></gf-lens-sampling>`
          : nothing
      }
    </section>`;
  }
}
