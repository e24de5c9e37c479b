/** View 6. One head's pattern, and one cell of it worked out: products, sum, scale, mask, softmax, weighted value. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "../parts/bars.js";
import "../parts/formula.js";
import "../parts/pattern.js";
import "../parts/cause.js";
import "../parts/receipt.js";
import "../parts/refused.js";
import "../parts/worked.js";
import "../parts/where.js";
import { Ask } from "../ask.js";
import { num, percent, short } from "../lib/number.js";
import { quoted } from "../parts/token.js";
import type { Cell } from "../shapes.js";
import { Follower } from "../view.js";

const SHOWN = 10; // keys beside the picture

@customElement("gf-view-cell")
export class CellView extends Follower {
  #cell = new Ask<Cell>(this, () => this.session.ofTrace("cell", { ...this.session.here }));

  static override styles = [
    Follower.styles,
    css`
      .top {
        display: grid;
        grid-template-columns: minmax(0, 22rem) minmax(14rem, 1fr);
        gap: 1.75rem;
        align-items: start;
      }
      .side {
        display: grid;
        gap: 0.7rem;
      }
      .title {
        display: flex;
        flex-wrap: wrap;
        gap: 0.4rem 1.4rem;
        align-items: baseline;
        justify-content: space-between;
      }
      @media (max-width: 900px) {
        .top {
          grid-template-columns: 1fr;
        }
      }
    `,
  ];

  /** Whether the scale is switched off, in every number from there on. */
  get unscaled(): boolean {
    return this.session.place.more["unscaled"] === "1";
  }

  override render() {
    const { session } = this,
      found = this.#cell.value,
      none = found !== null && Number.isNaN(num(found.prob)),
      cell = none ? null : found,
      error = this.#cell.error;
    return html`<section class="stack">
      <div class="title">
        <h2>Attention, worked out</h2>
        <gf-where .session=${session}></gf-where>
      </div>
      ${error ? html`<gf-refused reason=${error.message}></gf-refused>` : nothing}
      ${
        none
          ? html`<gf-refused
              heading="No numbers stand here"
              reason="What this cell is computed from is no number (NaN): an edit below it grew beyond what a float can hold. Take it back, or look at a block before it."
            ></gf-refused>`
          : nothing
      }
      ${
        error || !cell
          ? nothing
          : html`<div class="top"><gf-pattern .session=${session} most="400"></gf-pattern>${this.#row(cell)}</div>
              <gf-worked
                .session=${session}
                .cell=${cell}
                .unscaled=${this.unscaled}
                .queries=${session.tokens}
                .keys=${session.tokens}
              ></gf-worked>
              <gf-receipt .of=${cell.receipt}></gf-receipt>
              <gf-cause
                .session=${session}
                label="Hide key ${cell.key} from query ${cell.query} here, and write anew"
                .edit=${
                  cell.visible
                    ? {
                        op: "knockout",
                        point: `blocks.${cell.layer}.attn.scores`,
                        head: cell.head,
                        query: cell.query,
                        key: cell.key,
                      }
                    : null
                }
              ></gf-cause>`
      }
    </section>`;
  }

  #row(cell: Cell) {
    const now = this.unscaled ? cell.unscaled : cell,
      probs = now.probs.map(num);
    const order = probs
      .map((_, i) => i)
      .sort((a, b) => (probs[b] as number) - (probs[a] as number))
      .slice(0, SHOWN);
    if (!order.includes(cell.key)) order.splice(SHOWN - 1, 1, cell.key);
    order.sort((a, b) => a - b);
    return html`<div class="side">
      <h3>What ${quoted(this.session.tokens[cell.query]?.text)} takes, and of whom</h3>
      <gf-bars
        pick
        tokens
        meaning="key"
        top="1"
        label="Shares of the keys"
        .bars=${order.map((i) => ({
          index: i,
          label: this.session.tokens[i]?.text ?? "",
          value: probs[i] as number,
          chosen: i === cell.key,
        }))}
        @pick=${(event: CustomEvent<number>) => this.session.go({ key: order[event.detail] ?? 0 })}
      ></gf-bars>
      <div class="row">
        <button
          aria-pressed=${this.unscaled}
          @click=${() => this.session.more({ unscaled: this.unscaled ? null : "1" })}
        >
          without the scale
        </button>
        <span class="small soft"
          >entropy
          <span class="num">${short(cell.entropy)}</span>
          nats${
            this.unscaled ? html`, unscaled <span class="num">${short(cell.unscaled.entropy)}</span>` : nothing
          }</span
        >
      </div>
      ${
        this.unscaled
          ? html`<p class="small">
              The largest share goes from <span class="num">${percent(Math.max(...cell.probs.map(num)))}</span> to
              <span class="num">${percent(Math.max(...cell.unscaled.probs.map(num)))}</span>: softmax saturates, and
              where it does, a change of a score changes nothing.
            </p>`
          : nothing
      }
      <gf-formula
        >softmax(<span class="q">q</span>·<span class="k">k</span
        >${this.unscaled ? nothing : ` × ${short(cell.scale)}`}) = softmax(${short(now.score)}) =
        ${percent(now.prob)}</gf-formula
      >
    </div>`;
  }
}
