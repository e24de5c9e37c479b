/** Edits view: a comparison of the original and the edited text, a form for edits, and sweeps. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "./edit_form.js";
import "./sweep.js";
import "./text_comparison.js";
import { SessionElement } from "../view.js";

@customElement("gf-view-edits")
export class EditsView extends SessionElement {
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
      <h2>Edit activations and compare</h2>
      ${
        session.trace
          ? html`<gf-text-comparison .session=${session}></gf-text-comparison> ${
                session.live
                  ? html`<gf-edit-form .session=${session}></gf-edit-form><gf-sweep .session=${session}></gf-sweep>`
                  : nothing
              }`
          : nothing
      }
    </section>`;
  }
}
