/** View 11. What each block would say next, which head and layer speaks for a token, and how sampling cuts the choice. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "../parts/refused.js";
import "./lens_attribution.js";
import "./lens_grid.js";
import "./lens_sampling.js";
import { quoted } from "../parts/token.js";
import { Follower } from "../view.js";

@customElement("gf-view-lens")
export class LensView extends Follower {
  static override styles = [
    Follower.styles,
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
        <h2>Which token next?</h2>
        <p>After ${quoted(session.tokens[session.here.query]?.text)}, token ${session.here.query}.</p>
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
