/** Sidebar: the guided tour, and details of the selected token. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "../components/bars.js";
import { Resource } from "../resource.js";
import { num, percent } from "../lib/number.js";
import { inlineToken } from "../components/token.js";
import type { TokenSummary, Summary } from "../api_types.js";
import { SessionElement } from "../view.js";
import { TOUR } from "../tour.js";

@customElement("gf-sidebar")
export class Sidebar extends SessionElement {
  #summary = new Resource<Summary>(this, () => this.session.traceViewPath("summary", {}));

  static override styles = [
    SessionElement.styles,
    css`
      .tour {
        border: 1px solid var(--line);
        border-radius: 12px;
        padding: 1rem 1.1rem;
        background: var(--card);
      }
      .tour h2 {
        font-size: 1rem;
        margin: 0.15rem 0 0.45rem;
      }
      .tour p {
        font-size: 0.88rem;
        line-height: 1.55;
      }
      .tour p + p {
        margin-top: 0.55rem;
      }
      .tour .row {
        margin-top: 0.85rem;
        justify-content: space-between;
        align-items: center;
        flex-wrap: nowrap;
      }
      .tour .row button {
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
    return html`${this.#tour()}${this.#token()}`;
  }

  #tour() {
    const { session } = this,
      { tour_step } = session.address;
    const one = TOUR[tour_step];
    if ((session.anatomy?.kind ?? "decoder") !== "decoder") return nothing; // the tour describes a decoder
    if (!one)
      return html`<aside class="tour" aria-label="Guided tour">
        <h2>Guided tour</h2>
        <p class="soft">
          ${TOUR.length} steps, from attention to the cache and a causal test. Each step explains one view of this
          model.
        </p>
        <div class="row"><button class="strong" @click=${() => this.#openStep(0)}>Start</button></div>
      </aside>`;
    return html`<aside class="tour" aria-label="Guided tour">
      <span class="small soft">${tour_step + 1} of ${TOUR.length}</span>
      <h2>${one.title}</h2>
      ${
        one.view !== session.address.view
          ? html`<p class="soft">This view is not part of the tour step.</p>
              <p><button @click=${() => this.#openStep(tour_step)}>Back to the tour</button></p>`
          : html`<gf-tour-caption .session=${session} .step=${tour_step}></gf-tour-caption>`
      }
      <div class="row">
        <button ?disabled=${tour_step === 0} @click=${() => this.#openStep(tour_step - 1)}>Back</button>
        <button @click=${() => session.navigate({ tour_step: -1 })}>Close</button>
        <button class="strong" ?disabled=${tour_step === TOUR.length - 1} @click=${() => this.#openStep(tour_step + 1)}>
          Next
        </button>
      </div>
    </aside>`;
  }

  #openStep(tour_step: number): void {
    const one = TOUR[tour_step];
    if (one) this.session.navigate({ tour_step, view: one.view });
  }

  #token() {
    const summary = this.#summary.value,
      { trace, cursor } = this.session;
    if (!trace) return nothing;
    const token = summary?.tokens[cursor.query];
    if (!summary || !token) return nothing;
    const after = summary.tokens[cursor.query + 1],
      last = !after,
      top = last ? summary.next : after.top;
    if (top.some((one) => Number.isNaN(num(one.value))))
      return html`<section class="token" aria-label="Selected token">
        <h3>Token ${cursor.query}: ${inlineToken(token.text)}</h3>
        <p class="small" role="status">
          The logits after this token are NaN.
          ${
            trace.edits.length
              ? "An edit made a value overflow. Remove the edit."
              : "A value overflows the data type of the model."
          }
        </p>
      </section>`;
    return html`<section class="token" aria-label="Selected token">
      <h3>Token ${cursor.query}: ${inlineToken(token.text)} <span class="soft">id ${token.id}</span></h3>
      ${this.#prediction(token)}
      <h3>Next-token probabilities</h3>
      <gf-bars
        tokens
        top="1"
        label="Most likely next tokens"
        .bars=${top.map((one) => ({ label: one.text, value: one.value, chosen: !last && one.id === after.id }))}
      ></gf-bars>
      ${
        last
          ? nothing
          : html`<p class="small soft">
              The next token is ${inlineToken(after.text)}${after.generated ? " (generated)" : ""}.
            </p>`
      }
      <p class="small"><button @click=${() => this.session.openView("lens")}>Show layer by layer</button></p>
    </section>`;
  }

  #prediction(token: TokenSummary) {
    if (token.prob === null || token.rank === null)
      return html`<p class="small soft">The first token has no prediction.</p>`;
    const first = token.rank === 0;
    return html`<p class="small">
      ${token.generated ? "Generated" : "Prompt token"} with probability ${percent(token.prob)}, rank ${token.rank + 1}.
      ${
        !first && token.top[0]
          ? html`The most likely token was ${inlineToken(token.top[0].text)} with ${percent(num(token.top[0].value))}.`
          : nothing
      }
    </p>`;
  }
}
