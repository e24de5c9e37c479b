/** Beside the room: the guided walk, and the token that is looked at. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "../parts/bars.js";
import { Ask } from "../ask.js";
import { num, percent } from "../lib/number.js";
import { quoted } from "../parts/token.js";
import type { Seen, Summary } from "../shapes.js";
import { Follower } from "../view.js";
import { WALK } from "../walk.js";

@customElement("gf-side")
export class Side extends Follower {
  #summary = new Ask<Summary>(this, () => this.session.ofTrace("summary", {}));

  static override styles = [
    Follower.styles,
    css`
      .walk {
        border: 1px solid var(--line);
        border-radius: 12px;
        padding: 1rem 1.1rem;
        background: var(--card);
      }
      .walk h2 {
        font-size: 1rem;
        margin: 0.15rem 0 0.45rem;
      }
      .walk p {
        font-size: 0.88rem;
        line-height: 1.55;
      }
      .walk p + p {
        margin-top: 0.55rem;
      }
      .walk .row {
        margin-top: 0.85rem;
        justify-content: space-between;
        align-items: center;
        flex-wrap: nowrap;
      }
      .walk .row button {
        padding: 0.2rem 0.65rem;
        font-size: 0.84rem;
      }
      .token {
        margin-top: 1.4rem;
        display: grid;
        gap: 0.5rem;
        padding: 0 0.15rem;
      }
      @media (max-width: 1100px) and (min-width: 721px) {
        :host {
          display: grid;
          grid-template-columns: 1fr 1fr;
          gap: 1.5rem;
        }
        .token {
          margin-top: 0.4rem;
        }
      }
    `,
  ];

  override render() {
    return html`${this.#walk()}${this.#token()}`;
  }

  #walk() {
    const { session } = this,
      { step } = session.place;
    const one = WALK[step];
    if ((session.anatomy?.kind ?? "decoder") !== "decoder") return nothing; // it walks through a model that writes on
    if (!one)
      return html`<aside class="walk" aria-label="Guided walk">
        <h2>A walk through the model</h2>
        <p class="soft">
          ${WALK.length} steps, from attention to the cache and a test of causes, each beside its live picture.
        </p>
        <div class="row"><button class="strong" @click=${() => this.#go(0)}>Start</button></div>
      </aside>`;
    return html`<aside class="walk" aria-label="Guided walk">
      <span class="small soft">${step + 1} of ${WALK.length}</span>
      <h2>${one.title}</h2>
      ${
        one.view !== session.place.view
          ? html`<p class="soft">This picture is beside the walk.</p>
              <p><button @click=${() => this.#go(step)}>Back to the walk</button></p>`
          : html`<gf-caption .session=${session} .step=${step}></gf-caption>`
      }
      <div class="row">
        <button ?disabled=${step === 0} @click=${() => this.#go(step - 1)}>Back</button>
        <button @click=${() => session.go({ step: -1 })}>Leave</button>
        <button class="strong" ?disabled=${step === WALK.length - 1} @click=${() => this.#go(step + 1)}>Next</button>
      </div>
    </aside>`;
  }

  #go(step: number): void {
    const one = WALK[step];
    if (one) this.session.go({ step, view: one.view });
  }

  #token() {
    const summary = this.#summary.value,
      { trace, here } = this.session;
    if (!trace) return nothing;
    const seen = summary?.tokens[here.query];
    if (!summary || !seen) return nothing;
    const after = summary.tokens[here.query + 1],
      last = !after,
      top = last ? summary.next : after.top;
    if (top.some((one) => Number.isNaN(num(one.value))))
      return html`<section class="token" aria-label="The token looked at">
        <h3>Token ${here.query}: ${quoted(seen.text)}</h3>
        <p class="small" role="status">
          After it the scores are no numbers (NaN):
          ${
            trace.edits.length
              ? "an edit has made something too large for a float, and what is computed from it is none. Take the edit back."
              : "something here is too large for how it is stored."
          }
        </p>
      </section>`;
    return html`<section class="token" aria-label="The token looked at">
      <h3>Token ${here.query}: ${quoted(seen.text)} <span class="soft">id ${seen.id}</span></h3>
      ${this.#why(seen)}
      <h3>After it the model expects</h3>
      <gf-bars
        tokens
        top="1"
        label="The likeliest next tokens"
        .bars=${top.map((one) => ({ label: one.text, value: one.value, chosen: !last && one.id === after.id }))}
      ></gf-bars>
      ${
        last
          ? nothing
          : html`<p class="small soft">
              What follows is ${quoted(after.text)}${after.written ? ", which it wrote" : ""}.
            </p>`
      }
      <p class="small"><button @click=${() => this.session.visit("lens")}>Why? Layer by layer</button></p>
    </section>`;
  }

  #why(seen: Seen) {
    if (seen.prob === null || seen.rank === null)
      return html`<p class="small soft">The first token: nothing predicts it.</p>`;
    const first = seen.rank === 0;
    return html`<p class="small">
      ${seen.written ? "Written" : "Read"}: it had ${percent(seen.prob)},
      ${first ? "more than any other" : `with ${seen.rank} likelier ${seen.rank === 1 ? "one" : "ones"}`}.
      ${
        !first && seen.top[0]
          ? html`Likeliest was ${quoted(seen.top[0].text)}, ${percent(num(seen.top[0].value))}.`
          : nothing
      }
    </p>`;
  }
}
