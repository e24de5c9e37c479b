/** Block view: what a block adds to the residual stream, and the most active neurons of its feed-forward layer. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import { setStyle } from "../lib/set_style.js";
import "../components/bars.js";
import "../components/causal_test.js";
import "../components/receipt.js";
import "../components/notice.js";
import "../components/strip.js";
import "../components/head_picker.js";
import { Resource } from "../resource.js";
import { count, num, short, type Num } from "../lib/number.js";
import { largest } from "../lib/tensor.js";
import { inlineToken } from "../components/token.js";
import type { Block, ScoredToken } from "../api_types.js";
import { SessionElement } from "../view.js";

@customElement("gf-view-block")
export class BlockView extends SessionElement {
  #block = new Resource<Block>(this, () => this.#path(0));
  #detail = new Resource<Block>(this, () => this.#path(12), "json", 150); // includes neurons, which takes longer

  static override styles = [
    SessionElement.styles,
    css`
      .sum {
        display: grid;
        grid-template-columns: 1.4rem 10.5rem minmax(0, 1fr) 4.5rem;
        gap: 0.55rem 0.6rem;
        align-items: center;
        font-size: 0.86rem;
      }
      .sum .sign {
        font-family: var(--mono);
        text-align: center;
        color: var(--soft);
      }
      .sum .n {
        text-align: right;
      }
      .sum .rule {
        grid-column: 1 / -1;
        border-top: 1px solid var(--soft);
      }
      .sum label {
        display: flex;
        gap: 0.45rem;
        align-items: center;
        cursor: pointer;
      }
      .off {
        opacity: 0.35;
      }
      table {
        border-collapse: collapse;
        width: 100%;
        font-size: 0.84rem;
      }
      th,
      td {
        text-align: left;
        padding: 0.34rem 0.8rem 0.34rem 0;
        border-bottom: 1px solid var(--line);
        font-weight: 400;
        vertical-align: baseline;
      }
      thead th {
        color: var(--soft);
        font-size: 0.76rem;
      }
      .right {
        text-align: right;
        white-space: nowrap;
      }
      th button {
        padding: 0 0.4rem;
        font-size: inherit;
      }
      td .tok {
        margin-right: 0.3rem;
        white-space: nowrap;
      }
      @media (max-width: 720px) {
        .sum {
          grid-template-columns: 1rem 6.4rem minmax(0, 1fr) 3.4rem;
        }
      }
    `,
  ];

  #path(top: number): string | null {
    return this.session.traceViewPath("block", {
      layer: this.session.cursor.layer,
      position: this.session.cursor.query,
      top,
    });
  }

  override render() {
    const block = this.#block.value,
      error = this.#block.error;
    return html`<section class="stack">
      <div class="title">
        <h2>What a block adds to the residual stream</h2>
        <gf-head-picker nohead .session=${this.session}></gf-head-picker>
      </div>
      ${error ? html`<gf-notice reason=${error.message}></gf-notice>` : block ? this.#show(block) : nothing}
    </section>`;
  }

  #show(block: Block) {
    const excluded = this.session.address.options["exclude_parts"] ?? "",
      top = largest([...block.resid_pre, ...block.resid_post].map(num)).size;
    const parts = [
      { name: "input", sign: "", data: block.resid_pre, meaning: "residual", key: "" },
      { name: "attention", sign: "+", data: block.attn_add, meaning: "query", key: "a" },
      ...(block.cross_add
        ? [{ name: "cross-attention", sign: "+", data: block.cross_add, meaning: "key", key: "c" }]
        : []),
      { name: "feed-forward", sign: "+", data: block.mlp_add, meaning: "forward", key: "f" },
    ];
    const output = this.#output(block, excluded);
    return html`<p>
        ${inlineToken(this.session.tokens[block.position]?.text)} in block
        ${block.layer}${block.parallel ? ", whose attention and feed-forward layers run in parallel" : ""}. All rows use
        one colour scale.
      </p>
      <div class="sum">
        ${parts.map(
          (part) =>
            html`<span class="sign">${part.sign}</span>
              ${
                part.key
                  ? html`<label
                      ><input
                        type="checkbox"
                        .checked=${!excluded.includes(part.key)}
                        @change=${() => this.#toggle(excluded, part.key)}
                      />
                      ${part.name}</label
                    >`
                  : html`<span>${part.name}</span>`
              }
              <gf-strip
                quiet
                class=${part.key && excluded.includes(part.key) ? "off" : ""}
                .data=${part.data}
                .top=${top}
                meaning=${part.meaning}
                label="${part.name}"
              ></gf-strip>
              <span class="n num">${short(Math.hypot(...part.data.map(num)))}</span>`,
        )}
        <span class="rule"></span>
        <span class="sign">=</span><span>output${excluded ? " without unchecked parts" : ""}</span
        ><gf-strip .data=${output} .top=${top} meaning="residual" label="output of the block"></gf-strip
        ><span class="n num">${short(Math.hypot(...output.map(num)))}</span>
      </div>
      <p class="small soft">
        The numbers are vector norms. An unchecked layer is left out of this sum only; the model does not run again.
      </p>
      <gf-receipt .of=${block.receipt}></gf-receipt>
      <h3>${block.experts.length ? "Selected experts" : `Neurons with the largest output, of ${count(block.d_ff)}`}</h3>
      ${block.note ? html`<gf-notice heading="Neurons not available" reason=${block.note}></gf-notice>` : nothing}
      ${
        block.experts.length
          ? html`<gf-bars
              meaning="forward"
              top="1"
              label="Expert weights"
              .bars=${block.experts.map((one) => ({ label: `expert ${one.index}`, value: one.weight }))}
            ></gf-bars>`
          : nothing
      }
      ${this.#detail.value?.neurons.length ? this.#neurons(this.#detail.value) : nothing}`;
  }

  /** The output of the block without the unchecked parts. */
  #output(block: Block, excluded: string): Num[] {
    if (!excluded) return block.resid_post;
    const without = (key: string, part: Num[] | null, i: number) => (excluded.includes(key) ? num(part?.[i] ?? 0) : 0);
    return block.resid_post.map(
      (x, i) =>
        num(x) - without("a", block.attn_add, i) - without("c", block.cross_add, i) - without("f", block.mlp_add, i),
    );
  }

  #neurons(block: Block) {
    const largest = num(block.neurons[0]?.norm ?? 1),
      tokens = (named: ScoredToken[]) => named.map((one) => inlineToken(one.text));
    return html`<div class="wrap" tabindex="0" role="region" aria-label="Neurons">
        <table>
          <thead>
            <tr>
              <th>neuron</th>
              <th class="right">activation</th>
              <th class="right">output norm</th>
              <th>promotes</th>
              <th>suppresses</th>
            </tr>
          </thead>
          <tbody>
            ${block.neurons.map(
              (one) =>
                html`<tr class=${one.index === this.#neuron(block) ? "here" : ""}>
                  <th scope="row" class="num">
                    <button
                      aria-pressed=${one.index === this.#neuron(block)}
                      aria-label="neuron ${one.index}"
                      @click=${() => this.session.setOptions({ neuron: String(one.index) })}
                    >
                      ${one.index}
                    </button>
                  </th>
                  <td class="right num">${short(one.act)}</td>
                  <td class="right num" ${setStyle({ opacity: 0.55 + 0.45 * (num(one.norm) / largest) })}>
                    ${short(one.norm)}
                  </td>
                  <td>${tokens(one.promotes)}</td>
                  <td class="soft">${tokens(one.suppresses)}</td>
                </tr>`,
            )}
          </tbody>
        </table>
      </div>
      <gf-causal-test
        .session=${this.session}
        label="Ablate neuron ${this.#neuron(block)} of block ${block.layer}"
        .edit=${{ op: "ablate", point: `blocks.${block.layer}.mlp.act`, dim: this.#neuron(block) }}
      ></gf-causal-test>`;
  }

  /** The selected neuron; by default the one with the largest output. */
  #neuron(block: Block): number {
    const option = Number(this.session.address.options["neuron"] ?? NaN);
    return block.neurons.some((one) => one.index === option) ? option : (block.neurons[0]?.index ?? 0);
  }

  #toggle(excluded: string, key: string): void {
    const now = excluded.includes(key) ? excluded.replace(key, "") : excluded + key;
    this.session.setOptions({ exclude_parts: now || null });
  }
}
