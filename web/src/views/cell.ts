/** Attention view: the pattern of one head, and the computation of one attention weight in stages. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "../components/bars.js";
import "../components/formula.js";
import "../components/pattern.js";
import "../components/causal_test.js";
import "../components/receipt.js";
import "../components/notice.js";
import "../components/attention_steps.js";
import "../components/head_picker.js";
import { Resource } from "../resource.js";
import { topIndices } from "../lib/tensor.js";
import { num, percent, short } from "../lib/number.js";
import { inlineToken } from "../components/token.js";
import type { Cell } from "../api_types.js";
import { SessionElement } from "../view.js";

const MAX_BARS = 10; // keys in the bar chart
const NAN_REASON =
  "This attention weight is NaN: an edit in an earlier block made a value overflow. " +
  "Remove the edit, or select an earlier block.";

@customElement("gf-view-cell")
export class CellView extends SessionElement {
  #cell = new Resource<Cell>(this, () => this.session.traceViewPath("cell", { ...this.session.cursor }));

  static override styles = [
    SessionElement.styles,
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
      @media (max-width: 900px) {
        .top {
          grid-template-columns: 1fr;
        }
      }
    `,
  ];

  /** Whether the scale is switched off. */
  get unscaled(): boolean {
    return this.session.address.options["unscaled"] === "1";
  }

  override render() {
    const { session } = this,
      found = this.#cell.value,
      none = found !== null && Number.isNaN(num(found.prob)),
      cell = none ? null : found,
      error = this.#cell.error;
    return html`<section class="stack">
      <div class="title">
        <h2>Attention, step by step</h2>
        <gf-head-picker .session=${session}></gf-head-picker>
      </div>
      ${error ? html`<gf-notice reason=${error.message}></gf-notice>` : nothing}
      ${none ? html`<gf-notice heading="No finite values" reason=${NAN_REASON}></gf-notice>` : nothing}
      ${
        error || !cell
          ? nothing
          : html`<div class="top"><gf-pattern .session=${session} maxWidth="400"></gf-pattern>${this.#row(cell)}</div>
              <gf-attention-steps
                .session=${session}
                .cell=${cell}
                .unscaled=${this.unscaled}
                .queries=${session.tokens}
                .keys=${session.tokens}
              ></gf-attention-steps>
              <gf-receipt .of=${cell.receipt}></gf-receipt>
              <gf-causal-test
                .session=${session}
                label="Mask key ${cell.key} for query ${cell.query}"
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
              ></gf-causal-test>`
      }
    </section>`;
  }

  #row(cell: Cell) {
    const now = this.unscaled ? cell.unscaled : cell,
      probs = now.probs.map(num);
    const order = topIndices(probs, MAX_BARS, cell.key);
    return html`<div class="side">
      <h3>Attention weights of query ${inlineToken(this.session.tokens[cell.query]?.text)}</h3>
      <gf-bars
        pick
        tokens
        meaning="key"
        top="1"
        label="Attention weights of the keys"
        .bars=${order.map((i) => ({
          index: i,
          label: this.session.tokens[i]?.text ?? "",
          value: probs[i] as number,
          chosen: i === cell.key,
        }))}
        @pick=${(event: CustomEvent<number>) => this.session.navigate({ key: order[event.detail] ?? 0 })}
      ></gf-bars>
      <div class="row">
        <button
          aria-pressed=${this.unscaled}
          @click=${() => this.session.setOptions({ unscaled: this.unscaled ? null : "1" })}
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
              The largest weight changes from <span class="num">${percent(Math.max(...cell.probs.map(num)))}</span> to
              <span class="num">${percent(Math.max(...cell.unscaled.probs.map(num)))}</span>: the softmax saturates, and
              its gradient becomes small.
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
