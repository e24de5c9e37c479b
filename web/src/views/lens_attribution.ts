/** Of view 11: each head's and each feed-forward layer's share of how much likelier one token is than another. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "../parts/bars.js";
import "../parts/matrix.js";
import "../parts/cause.js";
import "../parts/receipt.js";
import "../parts/refused.js";
import { Ask } from "../ask.js";
import { num, short, type Num } from "../lib/number.js";
import type { Pick } from "../parts/matrix.js";
import { quoted, visible } from "../parts/token.js";
import type { Attribution, Choice } from "../shapes.js";
import { Follower } from "../view.js";

const KEYS = { target: "for", rival: "against" } as const; // in the address, where a translator's target is another

@customElement("gf-lens-attribution")
export class LensAttribution extends Follower {
  #likely = new Ask<Choice>(this, () =>
    this.session.ofTrace("sampling", { position: this.session.here.query, top: 12 }),
  );
  #shares = new Ask<Attribution>(this, () =>
    this.session.ofTrace("attribution", {
      position: this.session.here.query,
      target: this.#asked("target"),
      rival: this.#asked("rival"),
    }),
  );

  static override styles = [
    Follower.styles,
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

  /** The token chosen, by its id; null: the likeliest. */
  #asked(which: "target" | "rival"): string | null {
    return this.session.place.more[KEYS[which]] ?? null;
  }

  override render() {
    const shares = this.#shares.value,
      error = this.#shares.error;
    return html`<div class="stack">
      <h3>Who speaks for it, and who against</h3>
      ${
        error
          ? html`<gf-refused heading="No shares" reason=${error.message}></gf-refused>`
          : shares
            ? this.#show(shares)
            : nothing
      }
    </div>`;
  }

  #show(shares: Attribution) {
    const { session } = this,
      { here } = session,
      heads = shares.heads.flat().map(num),
      columns = shares.heads[0]?.length ?? 0;
    const rest: [string, Num][] = [
      ["embedding", shares.embedding],
      ...shares.mlp.map((x, i): [string, Num] => [`block ${i}, feed-forward`, x]),
      ...shares.attention_bias.flatMap((x, i): [string, Num][] =>
        num(x) ? [[`block ${i}, attention's bias`, x]] : [],
      ),
      ...(num(shares.constant) ? [["norm and head alone", shares.constant] as [string, Num]] : []),
      ...(num(shares.edits) ? [["the edits", shares.edits] as [string, Num]] : []),
    ];
    const total = heads.reduce((a, b) => a + b, 0);
    return html`<div class="row">
        <span>${this.#choose("target", shares.target)} against ${this.#choose("rival", shares.rival)}:</span>
        <span
          >logits differ by <span class="num">${short(shares.difference)}</span>${
            num(shares.capped) !== num(shares.difference)
              ? html` (<span class="num">${short(shares.capped)}</span> under the cap)`
              : nothing
          },
          of which all heads <span class="num">${short(total)}</span></span
        >
      </div>
      <div class="two">
        <div>
          <gf-matrix
            meaning="query"
            most="270"
            .data=${heads}
            .rows=${shares.heads.length}
            .columns=${columns}
            .row=${here.layer}
            .column=${here.head}
            rowName="block"
            columnName="head"
            label="Shares of the heads"
            @pick=${(event: CustomEvent<Pick>) => session.go({ layer: event.detail.row, head: event.detail.column })}
          ></gf-matrix>
          <p class="small soft">Blue speaks for ${quoted(shares.target[1])}, grey against it, in logits.</p>
        </div>
        <gf-bars
          meaning="forward"
          wide
          label="Shares of all else"
          .bars=${rest.map(([label, value]) => ({ label, value, text: short(value) }))}
        ></gf-bars>
      </div>
      <gf-receipt .of=${shares.receipt}></gf-receipt>
      <gf-cause
        .session=${session}
        label="Take head ${here.head} of block ${here.layer} out, and write anew"
        .edit=${{ op: "ablate", point: `blocks.${here.layer}.attn.z`, head: here.head }}
      ></gf-cause>`;
  }

  #choose(which: "target" | "rival", now: [number, string]) {
    const named = new Map<number, string>([
      [now[0], now[1]],
      ...(this.#likely.value?.tokens ?? []).map((one): [number, string] => [one.id, one.text]),
    ]);
    return html`<select
      aria-label=${which}
      @change=${(event: Event) => this.session.more({ [KEYS[which]]: (event.target as HTMLSelectElement).value })}
    >
      ${[...named].map(([id, text]) => html`<option value=${id} .selected=${id === now[0]}>${visible(text)}</option>`)}
    </select>`;
  }
}
