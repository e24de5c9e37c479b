/** View 13. One change inside the model: the two texts, how far apart what comes next is, and a sweep of such changes. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "./fork_maker.js";
import "./fork_sweep.js";
import "./fork_texts.js";
import { Follower } from "../view.js";

@customElement("gf-view-fork")
export class ForkView extends Follower {
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
      <h2>Does it cause what it seems to?</h2>
      ${
        session.trace
          ? html`<gf-fork-texts .session=${session}></gf-fork-texts> ${
                session.live
                  ? html`<gf-fork-maker .session=${session}></gf-fork-maker
                      ><gf-fork-sweep .session=${session}></gf-fork-sweep>`
                  : nothing
              }`
          : nothing
      }
    </section>`;
  }
}
