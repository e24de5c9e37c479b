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
import type { Latent, Product, QKV } from "../shapes.js";
import { Follower } from "../view.js";

const PARTS = [
  ["q", "query"],
  ["k", "key"],
  ["v", "value"],
] as const;
const MADE = { q: "the query", kv: "key and value" }; // of a latent

/** What a product multiplies: x itself, or a latent; and how it is called. */
function operand(qkv: QKV, of: Product["of"]): { name: string; data: Num[] } {
  return of === "x" ? { name: "x", data: qkv.x } : { name: `c_${of}`, data: qkv.latents[of]?.normed ?? [] };
}

/** The matrices that a query, a key or a value is made by: of x, of a latent, or a part of each. */
function made(qkv: QKV, part: "q" | "k" | "v"): string {
  if (part === "k" && qkv.latents.kv) return "[x · W_kr | c_kv · W_uk]";
  const of = part === "q" ? "q" : "kv";
  return qkv.latents[of] ? `c_${of} · W_u${part}` : `x · W_${part}`;
}

@customElement("gf-view-qkv")
export class QKVView extends Follower {
  #qkv = new Ask<QKV>(this, () => {
    const { layer, head, query } = this.session.here;
    return this.session.ofTrace("qkv", { layer, head, position: query, dim: this.#dim });
  });

  static override styles = [
    Follower.styles,
    css`
      .title {
        display: flex;
        flex-wrap: wrap;
        gap: 0.4rem 1.4rem;
        align-items: baseline;
        justify-content: space-between;
      }
      .from {
        display: grid;
        gap: 0.5rem;
      }
      .three {
        display: grid;
        grid-template-columns: repeat(3, minmax(0, 1fr));
        gap: 1.5rem;
      }
      .one {
        border-top: 3px solid var(--tone);
        padding-top: 0.7rem;
        display: grid;
        gap: 0.6rem;
        align-content: start;
      }
      .one h3 span {
        color: var(--tone);
      }
      .lab {
        font-size: 0.8rem;
        color: var(--soft);
      }
      .strips {
        display: grid;
        grid-template-columns: 6.5rem minmax(0, 1fr);
        gap: 0.3rem 0.8rem;
        font-size: 0.82rem;
        align-items: start;
      }
      .strips > span {
        padding-top: 0.15rem;
      }
      gf-strip.tall {
        --height: 1.8rem;
      }
      @media (max-width: 900px) {
        .three {
          grid-template-columns: 1fr;
        }
        .strips {
          grid-template-columns: 5rem minmax(0, 1fr);
        }
      }
    `,
  ];

  get #dim(): number {
    const asked = Number(this.session.place.more["dim"] ?? 0),
      size = this.session.anatomy?.layers[this.session.here.layer]?.head_dim ?? 1;
    return Number.isInteger(asked) ? Math.min(size - 1, Math.max(0, asked)) : 0;
  }

  override render() {
    const qkv = this.#qkv.value,
      error = this.#qkv.error;
    return html`<section class="stack">
      <div class="title">
        <h2>Query, key and value, all from one x</h2>
        <gf-where .session=${this.session}></gf-where>
      </div>
      ${error ? html`<gf-refused reason=${error.message}></gf-refused>` : qkv ? this.#show(qkv) : nothing}
    </section>`;
  }

  #show(qkv: QKV) {
    const move = (event: CustomEvent<number>) => this.session.more({ dim: String(event.detail) });
    const token = quoted(this.session.tokens[qkv.position]?.text);
    return html`<div class="strips">
        <span><span class="r">residual</span></span
        ><gf-strip .data=${qkv.residual} meaning="residual" label="residual stream before the block"
          >the stream that block ${qkv.layer} gets for ${token}</gf-strip
        >
        <span>x, normed</span
        ><gf-strip .data=${qkv.x} meaning="residual" label="x, what attention reads"
          >what all heads of the block read</gf-strip
        >
        ${(["q", "kv"] as const).map((of) => this.#latent(of, qkv.latents[of]))}
      </div>
      <div class="three">${PARTS.map(([part, name]) => this.#one(qkv, part, name, move))}</div>
      ${
        qkv.latents.kv
          ? html`<p class="small soft">
              The key's first ${qkv.turned} numbers, left of the line, are made of x, the same for all ${qkv.n_heads}
              heads, and turn with the position; the others are the head's own. The cache keeps c_kv and those
              ${qkv.turned}, no keys and values.
            </p>`
          : nothing
      }
      ${
        qkv.n_kv_heads < qkv.n_heads
          ? html`<p class="small soft">
              ${qkv.n_heads} query heads share ${qkv.n_kv_heads} of keys and values: head ${qkv.head} reads pair
              ${qkv.kv_head}.
            </p>`
          : nothing
      }
      <gf-receipt .of=${qkv.receipt}></gf-receipt>
      <gf-cause
        .session=${this.session}
        label="Empty this token's value in this head, and write anew"
        .edit=${{ op: "ablate", point: `blocks.${qkv.layer}.attn.v`, head: qkv.kv_head, position: qkv.position }}
      ></gf-cause>`;
  }

  #latent(of: "q" | "kv", latent: Latent | undefined) {
    return (
      latent &&
      html`<span>c_${of}</span>
        <div class="from">
          <gf-strip
            quiet
            .data=${latent.reduced}
            meaning="residual"
            label="latent of ${MADE[of]}, before its norm"
          ></gf-strip>
          <gf-strip .data=${latent.normed} meaning="residual" label="latent of ${MADE[of]}, normed"
            >x through W_d${of}, then normed: all heads make ${MADE[of]} of it</gf-strip
          >
        </div>`
    );
  }

  #one(qkv: QKV, part: "q" | "k" | "v", name: "query" | "key" | "value", move: (event: CustomEvent<number>) => void) {
    const values = qkv[part],
      turned = part === "v" ? null : qkv[`${part}_rot`],
      top = largest([...values, ...(turned ?? [])].map(num)).size;
    const how = [qkv.normed ? "normed" : "", qkv.turned ? "turned by its position" : ""].filter(Boolean).join(" and ");
    const cut = part !== "v" && qkv.latents.kv ? qkv.turned : 0;
    return html`<div class="one" ${look({ "--tone": `var(--${name})` })}>
      <h3><span>${name}</span> = ${made(qkv, part)}</h3>
      <gf-strip
        class="tall"
        .data=${values}
        .top=${top}
        .cut=${cut}
        meaning=${name}
        .at=${qkv.dim}
        label=${name}
        @pick=${move}
      ></gf-strip>
      ${this.#product(qkv, part)}
      ${
        turned && how
          ? html`<span class="lab">${how}</span
              ><gf-strip
                class="tall"
                .data=${turned}
                .top=${top}
                .cut=${cut}
                meaning=${name}
                .at=${qkv.dim}
                label="${name}, ${how}"
                @pick=${move}
              ></gf-strip>
              <span class="lab"
                >length <span class="num">${short(qkv.lengths[part] ?? 0)}</span> before,
                <span class="num">${short(qkv.lengths[`${part}_rot`] ?? 0)}</span> after</span
              >`
          : nothing
      }
    </div>`;
  }

  #product(qkv: QKV, part: "q" | "k" | "v") {
    const product = qkv.products[part];
    if (!product) return html`<span class="lab">it has ${qkv[part].length} numbers, and none at ${qkv.dim}</span>`;
    const { name, data } = operand(qkv, product.of),
      bias = num(product.bias),
      parts = product.weights.map((w, i) => num(w) * num(data[i] as Num));
    return html`<span class="lab">row ${qkv.dim} of ${product.matrix}, and its products with ${name}</span>
      <gf-strip quiet .data=${product.weights} meaning="plain" label="row ${qkv.dim} of ${product.matrix}"></gf-strip>
      <gf-strip quiet .data=${parts} meaning="plain" label="products of ${name} with row ${qkv.dim}"></gf-strip>
      <gf-formula
        >${part}[${qkv.dim}] = ${bias ? html`${short(product.sum)} + ${short(bias)} = ` : "Σ = "}<b
          >${short(product.value)}</b
        ></gf-formula
      >`;
  }
}
