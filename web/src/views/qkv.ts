/** View 5. Query, key and value of one token in one head, all from one x: rows of three matrices, and a rotation. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import { look } from "../lib/look.js";
import "../parts/formula.js";
import "../parts/cause.js";
import "../parts/receipt.js";
import "../parts/refused.js";
import "../parts/strip.js";
import "../parts/where.js";
import { Ask } from "../ask.js";
import { num, short, type Num } from "../lib/number.js";
import { largest } from "../lib/tensor.js";
import { quoted } from "../parts/token.js";
import type { QKV } from "../shapes.js";
import { Follower } from "../view.js";

const PARTS = [["q", "query", "W_q"], ["k", "key", "W_k"], ["v", "value", "W_v"]] as const;

@customElement("gf-view-qkv")
export class QKVView extends Follower {
  #qkv = new Ask<QKV>(this, () => {
    const { layer, head, query } = this.session.here;
    return this.session.ofTrace("qkv", { layer, head, position: query, dim: this.#dim });
  });

  static override styles = [Follower.styles, css`
    .title { display: flex; flex-wrap: wrap; gap: 0.4rem 1.4rem; align-items: baseline; justify-content: space-between; }
    .from { display: grid; gap: 0.5rem; }
    .three { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 1.5rem; }
    .one { border-top: 3px solid var(--tone); padding-top: 0.7rem; display: grid; gap: 0.6rem; align-content: start; }
    .one h3 span { color: var(--tone); }
    .lab { font-size: 0.8rem; color: var(--soft); }
    .strips { display: grid; grid-template-columns: 6.5rem minmax(0, 1fr); gap: 0.3rem 0.8rem; font-size: 0.82rem; align-items: start; }
    .strips > span { padding-top: 0.15rem; }
    gf-strip.tall { --height: 1.8rem; }
    @media (max-width: 900px) { .three { grid-template-columns: 1fr; } .strips { grid-template-columns: 5rem minmax(0, 1fr); } }
  `];

  get #dim(): number {
    const asked = Number(this.session.place.more["dim"] ?? 0), size = this.session.anatomy?.layers[this.session.here.layer]?.head_dim ?? 1;
    return Number.isInteger(asked) ? Math.min(size - 1, Math.max(0, asked)) : 0;
  }

  override render() {
    const qkv = this.#qkv.value, error = this.#qkv.error;
    return html`<section class="stack">
      <div class="title"><h2>Query, key and value, all from one x</h2><gf-where .session=${this.session}></gf-where></div>
      ${error ? html`<gf-refused reason=${error.message}></gf-refused>` : qkv ? this.#show(qkv) : nothing}
    </section>`;
  }

  #show(qkv: QKV) {
    const move = (event: CustomEvent<number>) => this.session.more({ dim: String(event.detail) });
    const token = quoted(this.session.tokens[qkv.position]?.text);
    return html`<div class="strips">
        <span><span class="r">residual</span></span><gf-strip .data=${qkv.residual} meaning="residual" label="residual stream before the block">the stream that block ${qkv.layer} gets for ${token}</gf-strip>
        <span>x, normed</span><gf-strip .data=${qkv.x} meaning="residual" label="x, what attention reads">what all heads of the block read</gf-strip></div>
      <div class="three">${PARTS.map(([part, name, matrix]) => this.#one(qkv, part, name, matrix, move))}</div>
      ${qkv.n_kv_heads < qkv.n_heads ? html`<p class="small soft">${qkv.n_heads} query heads share ${qkv.n_kv_heads} of keys and values: head ${qkv.head} reads pair ${qkv.kv_head}.</p>` : nothing}
      <gf-receipt .of=${qkv.receipt}></gf-receipt>
      <gf-cause .session=${this.session} label="Empty this token's value in this head, and write anew"
        .edit=${{ op: "ablate", point: `blocks.${qkv.layer}.attn.v`, head: qkv.kv_head, position: qkv.position }}></gf-cause>`;
  }

  #one(qkv: QKV, part: "q" | "k" | "v", name: "query" | "key" | "value", matrix: string, move: (event: CustomEvent<number>) => void) {
    const product = qkv.products[part], values = qkv[part], bias = num(product.bias);
    const turned = part === "v" ? null : qkv[`${part}_rot`], top = largest([...values, ...(turned ?? [])].map(num)).size;
    const how = [qkv.normed ? "normed" : "", qkv.rotated ? "turned by its position" : ""].filter(Boolean).join(" and ");
    const parts = product.weights.map((w, i) => num(w) * num(qkv.x[i] as Num));
    return html`<div class="one" ${look({ "--tone": `var(--${name})` })}>
      <h3><span>${name}</span> = x · ${matrix}</h3>
      <gf-strip class="tall" .data=${values} .top=${top} meaning=${name} .at=${qkv.dim} label=${name} @pick=${move}></gf-strip>
      <span class="lab">row ${qkv.dim} of ${matrix}, and its products with x</span>
      <gf-strip quiet .data=${product.weights} meaning="plain" label="row ${qkv.dim} of ${matrix}"></gf-strip>
      <gf-strip quiet .data=${parts} meaning="plain" label="products of x with row ${qkv.dim}"></gf-strip>
      <gf-formula>${name[0]}[${qkv.dim}] = ${bias ? html`${short(product.sum)} + ${short(bias)} = ` : "Σ = "}<b>${short(product.value)}</b></gf-formula>
      ${turned && how ? html`<span class="lab">${how}</span><gf-strip class="tall" .data=${turned} .top=${top} meaning=${name} .at=${qkv.dim} label="${name}, ${how}" @pick=${move}></gf-strip>
        <span class="lab">length <span class="num">${short(qkv.lengths[part] ?? 0)}</span> before, <span class="num">${short(qkv.lengths[`${part}_rot`] ?? 0)}</span> after</span>` : nothing}
    </div>`;
  }
}
