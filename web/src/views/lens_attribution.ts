/** Direct logit attribution: the contribution of each head and layer to the logit difference of two tokens. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "../components/bars.js";
import "../components/matrix.js";
import "../components/causal_test.js";
import "../components/receipt.js";
import "../components/notice.js";
import { Resource } from "../resource.js";
import { num, short, type Num } from "../lib/number.js";
import type { Pick } from "../components/matrix.js";
import { inlineToken, visibleText } from "../components/token.js";
import type { Attribution, Sampling } from "../api_types.js";
import { SessionElement } from "../view.js";

const KEYS = { target: "target_token", rival: "rival_token" } as const; // option names

@customElement("gf-lens-attribution")
export class LensAttribution extends SessionElement {
  #likely = new Resource<Sampling>(this, () =>
    this.session.traceViewPath("sampling", { position: this.session.cursor.query, top: 12 }),
  );
  #attribution = new Resource<Attribution>(this, () =>
    this.session.traceViewPath("attribution", {
      position: this.session.cursor.query,
      target: this.#asked("target"),
      rival: this.#asked("rival"),
    }),
  );

  static override styles = [
    SessionElement.styles,
    css`
      .two {
        display: grid;
        grid-template-columns: minmax(0, 17rem) minmax(0, 1fr);
        gap: 1.75rem;
        align-items: start;
      }
      select {
        font-family: var(--mono);
        font-size: 0.82rem;
        padding: 0.12rem 0.3rem;
      }
      .row {
        font-size: 0.9rem;
      }
      @media (max-width: 720px) {
        .two {
          grid-template-columns: 1fr;
        }
      }
    `,
  ];

  /** The id of the selected token; null: the default. */
  #asked(which: "target" | "rival"): string | null {
    return this.session.address.options[KEYS[which]] ?? null;
  }

  override render() {
    const attribution = this.#attribution.value,
      error = this.#attribution.error;
    return html`<div class="stack">
      <h3>Logit attribution</h3>
      ${
        error
          ? html`<gf-notice heading="Attribution not available" reason=${error.message}></gf-notice>`
          : attribution
            ? this.#show(attribution)
            : nothing
      }
    </div>`;
  }

  #show(attribution: Attribution) {
    const { session } = this,
      { cursor } = session,
      heads = attribution.heads.flat().map(num),
      columns = attribution.heads[0]?.length ?? 0;
    const rest: [string, Num][] = [
      ["embedding", attribution.embedding],
      ...attribution.mlp.map((x, i): [string, Num] => [`block ${i}, feed-forward`, x]),
      ...attribution.attention_bias.flatMap((x, i): [string, Num][] =>
        num(x) ? [[`block ${i}, attention bias`, x]] : [],
      ),
      ...(num(attribution.constant) ? [["final norm and LM head bias", attribution.constant] as [string, Num]] : []),
      ...(num(attribution.edits) ? [["edits", attribution.edits] as [string, Num]] : []),
    ];
    const total = heads.reduce((a, b) => a + b, 0);
    return html`<div class="row">
        <span>${this.#choose("target", attribution.target)} versus ${this.#choose("rival", attribution.rival)}:</span>
        <span
          >logit difference <span class="num">${short(attribution.difference)}</span>${
            num(attribution.capped) !== num(attribution.difference)
              ? html` (<span class="num">${short(attribution.capped)}</span> after the softcap)`
              : nothing
          },
          of which all heads contribute <span class="num">${short(total)}</span></span
        >
      </div>
      <div class="two">
        <div>
          <gf-matrix
            meaning="query"
            maxWidth="270"
            .data=${heads}
            .rows=${attribution.heads.length}
            .columns=${columns}
            .row=${cursor.layer}
            .column=${cursor.head}
            rowName="block"
            columnName="head"
            label="Contributions of the heads"
            @pick=${(event: CustomEvent<Pick>) =>
              session.navigate({ layer: event.detail.row, head: event.detail.column })}
          ></gf-matrix>
          <p class="small soft">
            Contributions in logits. Blue favours ${inlineToken(attribution.target[1])}, grey favours
            ${inlineToken(attribution.rival[1])}.
          </p>
        </div>
        <gf-bars
          meaning="forward"
          wide
          label="Other contributions"
          .bars=${rest.map(([label, value]) => ({ label, value, text: short(value) }))}
        ></gf-bars>
      </div>
      <gf-receipt .of=${attribution.receipt}></gf-receipt>
      <gf-causal-test
        .session=${session}
        label="Ablate head ${cursor.head} of block ${cursor.layer}"
        .edit=${{ op: "ablate", point: `blocks.${cursor.layer}.attn.z`, head: cursor.head }}
      ></gf-causal-test>`;
  }

  #choose(which: "target" | "rival", now: [number, string]) {
    const named = new Map<number, string>([
      [now[0], now[1]],
      ...(this.#likely.value?.tokens ?? []).map((one): [number, string] => [one.id, one.text]),
    ]);
    return html`<select
      aria-label=${which}
      @change=${(event: Event) => this.session.setOptions({ [KEYS[which]]: (event.target as HTMLSelectElement).value })}
    >
      ${[...named].map(
        ([id, text]) => html`<option value=${id} .selected=${id === now[0]}>${visibleText(text)}</option>`,
      )}
    </select>`;
  }
}
