/** One attention cell, step by step: products, sum, scale, mask, softmax, weighted value. Of any attention there is. */
import { css, html, nothing } from "lit";
import { customElement, property, state } from "lit/decorators.js";
import "./strip.js";
import { num, percent, short, type Num } from "../lib/number.js";
import { largest } from "../lib/tensor.js";
import type { Cell } from "../shapes.js";
import { Follower } from "../view.js";
import { quoted, visible } from "./token.js";

interface Named { text: string }

const name = (of: readonly Named[], i: number): string => visible(of[i]?.text ?? "");

@customElement("gf-worked")
export class Worked extends Follower {
  @property({ attribute: false }) cell: Cell | null = null;
  @property({ attribute: false }) queries: readonly Named[] = []; // the tokens that ask
  @property({ attribute: false }) keys: readonly Named[] = []; // and those that are asked
  @property({ type: Boolean }) unscaled = false;
  @state() private dim = 0;

  static override styles = [Follower.styles, css`
    ol { display: grid; gap: 1.15rem; counter-reset: step; }
    li { display: grid; grid-template-columns: 1.6rem minmax(0, 1fr); counter-increment: step; }
    li::before { content: counter(step); color: var(--soft); font-size: 0.82rem; padding-top: 0.12rem; }
    .line { display: grid; gap: 0.3rem; min-width: 0; }
    .strips { display: grid; grid-template-columns: 5.2rem minmax(0, 1fr); gap: 0.3rem 0.8rem; align-items: center; font-size: 0.8rem; }
    .worked { font-size: 0.88rem; }
    @media (max-width: 720px) { .strips { grid-template-columns: 3.6rem minmax(0, 1fr); } }
  `];

  override render() {
    const { cell } = this;
    if (!cell) return nothing;
    const size = (...of: Num[][]) => Math.max(...of.map((one) => largest(one.map(num)).size));
    const dim = Math.min(this.dim, cell.q.length - 1), move = (event: CustomEvent<number>) => (this.dim = event.detail);
    const strip = (data: Num[], label: string, meaning: string, top = 0, at = dim) =>
      html`<gf-strip quiet .data=${data} .top=${top} .at=${at} label=${label} meaning=${meaning} @pick=${move}></gf-strip>`;
    const qk = size(cell.q, cell.k), values = size(cell.v);
    const d = cell.q.length, root = Math.abs(num(cell.scale) - d ** -0.5) < 1e-6;
    const vdim = Math.min(dim, cell.v.length - 1);
    return html`<ol>
      <li><div class="line"><h3>Multiply, number by number</h3>
        <div class="strips"><span><span class="q">query</span> ${name(this.queries, cell.query)}</span>${strip(cell.q, "query", "query", qk)}
          <span><span class="k">key</span> ${name(this.keys, cell.key)}</span>${strip(cell.k, "key", "key", qk)}
          <span>products</span>${strip(cell.products, "products", "plain")}</div>
        <p class="worked">[${dim}]: <span class="num"><span class="q">${short(cell.q[dim] as Num)}</span> × <span class="k">${short(cell.k[dim] as Num)}</span> = ${short(cell.products[dim] as Num)}</span></p></div></li>
      <li><div class="line"><h3>Add them up: how well the two fit</h3>
        <p class="worked">all ${d} products together: <span class="num">${short(cell.sum)}</span></p></div></li>
      <li><div class="line"><h3>Scale, so that softmax does not saturate</h3>
        <p class="worked"><span class="num">${short(cell.sum)} × ${short(cell.scale)} = ${short(cell.scaled)}</span> ${root ? html`<span class="soft">(1/√${d})</span>` : html`<span class="soft">(this model's own scale)</span>`}
        ${cell.softcap === null ? nothing : html`<br />held under the cap: <span class="num">${short(cell.softcap)} · tanh(${short(cell.scaled)} / ${short(cell.softcap)}) = ${short(cell.capped)}</span>`}
        ${num(cell.bias) === 0 ? nothing : html`<br />and what the model adds for this distance: <span class="num">${short(cell.bias)}</span>`}</p></div></li>
      <li><div class="line"><h3>Mask: what may be seen</h3>
        <p class="worked">${cell.visible ? html`${quoted(this.keys[cell.key]?.text)} may be seen: the score stays <span class="num">${short(cell.score)}</span>`
          : html`${this.#hidden(cell)}, so its score is <span class="num">−∞</span> and its share 0`}</p></div></li>
      <li><div class="line"><h3>Softmax: shares that add up to 1</h3>
        <p class="worked"><span class="num">exp(${short(cell.score)} − ${short(cell.largest)}) = ${short(cell.exp)}</span>, over the row's sum
          <span class="num">${short(cell.total)}</span>${cell.sink === null ? nothing : html` <span class="soft">(with the sink's share in it)</span>`}:
          <span class="num">${percent(cell.prob, 2)}</span></p>
        <gf-strip shares quiet .data=${this.unscaled ? cell.unscaled : cell.probs} .at=${cell.key} label="shares of all keys" .names=${(i: number) => `key ${i} ${name(this.keys, i)}`}
          @pick=${(event: CustomEvent<number>) => this.session.go({ key: event.detail })}></gf-strip></div></li>
      <li><div class="line"><h3>Take that much of the value</h3>
        <div class="strips"><span><span class="v">value</span> ${name(this.keys, cell.key)}</span>${strip(cell.v, "value", "value", values, vdim)}
          <span>${percent(cell.prob)} of it</span>${strip(cell.weighted, "weighted value", "value", values, vdim)}
          <span>all keys'</span>${strip(cell.z, "z, the sum over all keys", "value", values, vdim)}</div>
        <p class="worked">[${vdim}]: <span class="num">${percent(cell.prob)} × <span class="v">${short(cell.v[vdim] as Num)}</span> = ${short(cell.weighted[vdim] as Num)}</span>,
          and with all other keys' <span class="num">z[${vdim}] = ${short(cell.z[vdim] as Num)}</span></p></div></li>
    </ol>`;
  }

  #hidden(cell: Cell) {
    if (cell.key > cell.query) return html`${quoted(this.keys[cell.key]?.text)} comes later and may not be seen`;
    return html`${quoted(this.keys[cell.key]?.text)} is outside the window of ${cell.window} tokens`;
  }
}
