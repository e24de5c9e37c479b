/** Q, K, V view: query, key and value of one token in one head, computed from the same input x. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import { setStyle } from "../lib/set_style.js";
import "../components/formula.js";
import "../components/causal_test.js";
import "../components/receipt.js";
import "../components/notice.js";
import "../components/strip.js";
import "../components/head_picker.js";
import { Resource } from "../resource.js";
import { num, short, type Num } from "../lib/number.js";
import { largest } from "../lib/tensor.js";
import { inlineToken } from "../components/token.js";
import type { Latent, Product, QKV } from "../api_types.js";
import { SessionElement } from "../view.js";

const PARTS = [
  ["q", "query"],
  ["k", "key"],
  ["v", "value"],
] as const;
const LATENT_OF = { q: "the query", kv: "key and value" }; // by kind of latent

/** Return the input of a projection and its name: x or a latent. */
function operand(qkv: QKV, of: Product["of"]): { name: string; data: Num[] } {
  return of === "x" ? { name: "x", data: qkv.x } : { name: `c_${of}`, data: qkv.latents[of]?.normed ?? [] };
}

/** Return the formula of a query, key or value. */
function formula(qkv: QKV, part: "q" | "k" | "v"): string {
  if (part === "k" && qkv.latents.kv) return "[x · W_kr | c_kv · W_uk]";
  const of = part === "q" ? "q" : "kv";
  return qkv.latents[of] ? `c_${of} · W_u${part}` : `x · W_${part}`;
}

@customElement("gf-view-qkv")
export class QKVView extends SessionElement {
  #qkv = new Resource<QKV>(this, () => {
    const { layer, head, query } = this.session.cursor;
    return this.session.traceViewPath("qkv", { layer, head, position: query, dim: this.#dim });
  });

  static override styles = [
    SessionElement.styles,
    css`
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
    const option = Number(this.session.address.options["dim"] ?? 0),
      size = this.session.anatomy?.layers[this.session.cursor.layer]?.head_dim ?? 1;
    return Number.isInteger(option) ? Math.min(size - 1, Math.max(0, option)) : 0;
  }

  override render() {
    const qkv = this.#qkv.value,
      error = this.#qkv.error;
    return html`<section class="stack">
      <div class="title">
        <h2>Query, key and value projections</h2>
        <gf-head-picker .session=${this.session}></gf-head-picker>
      </div>
      ${error ? html`<gf-notice reason=${error.message}></gf-notice>` : qkv ? this.#show(qkv) : nothing}
    </section>`;
  }

  #show(qkv: QKV) {
    const move = (event: CustomEvent<number>) => this.session.setOptions({ dim: String(event.detail) });
    const token = inlineToken(this.session.tokens[qkv.position]?.text);
    return html`<div class="strips">
        <span><span class="r">residual</span></span
        ><gf-strip .data=${qkv.residual} meaning="residual" label="residual stream before the block"
          >input of block ${qkv.layer} for ${token}</gf-strip
        >
        <span>x</span
        ><gf-strip .data=${qkv.x} meaning="residual" label="x, input of attention"
          >normalised input of all heads of the block</gf-strip
        >
        ${(["q", "kv"] as const).map((of) => this.#latent(of, qkv.latents[of]))}
      </div>
      <div class="three">${PARTS.map(([part, name]) => this.#one(qkv, part, name, move))}</div>
      ${
        qkv.latents.kv
          ? html`<p class="small soft">
              The first ${qkv.rotated} dimensions of the key, left of the line, are computed from x, shared by all
              ${qkv.n_heads} heads, and rotated by position. The other dimensions differ by head. The cache stores c_kv
              and these ${qkv.rotated} dimensions instead of keys and values.
            </p>`
          : nothing
      }
      ${
        qkv.n_kv_heads < qkv.n_heads
          ? html`<p class="small soft">
              ${qkv.n_heads} query heads share ${qkv.n_kv_heads} key-value heads: head ${qkv.head} uses key-value head
              ${qkv.kv_head}.
            </p>`
          : nothing
      }
      <gf-receipt .of=${qkv.receipt}></gf-receipt>
      <gf-causal-test
        .session=${this.session}
        label="Set the value of this token in this head to 0"
        .edit=${{ op: "ablate", point: `blocks.${qkv.layer}.attn.v`, head: qkv.kv_head, position: qkv.position }}
      ></gf-causal-test>`;
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
            label="latent of ${LATENT_OF[of]}, before the norm"
          ></gf-strip>
          <gf-strip .data=${latent.normed} meaning="residual" label="latent of ${LATENT_OF[of]}, normalised"
            >x · W_d${of}, normalised; all heads compute ${LATENT_OF[of]} from it</gf-strip
          >
        </div>`
    );
  }

  #one(qkv: QKV, part: "q" | "k" | "v", name: "query" | "key" | "value", move: (event: CustomEvent<number>) => void) {
    const values = qkv[part],
      rotated = part === "v" ? null : qkv[`${part}_rot`],
      top = largest([...values, ...(rotated ?? [])].map(num)).size;
    const transformations = [qkv.normed ? "normalised" : "", qkv.rotated ? "rotated by position" : ""]
      .filter(Boolean)
      .join(" and ");
    const cut = part !== "v" && qkv.latents.kv ? qkv.rotated : 0;
    return html`<div class="one" ${setStyle({ "--tone": `var(--${name})` })}>
      <h3><span>${name}</span> = ${formula(qkv, part)}</h3>
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
        rotated && transformations
          ? html`<span class="lab">${transformations}</span
              ><gf-strip
                class="tall"
                .data=${rotated}
                .top=${top}
                .cut=${cut}
                meaning=${name}
                .at=${qkv.dim}
                label="${name}, ${transformations}"
                @pick=${move}
              ></gf-strip>
              <span class="lab"
                >norm <span class="num">${short(qkv.lengths[part] ?? 0)}</span> before,
                <span class="num">${short(qkv.lengths[`${part}_rot`] ?? 0)}</span> after</span
              >`
          : nothing
      }
    </div>`;
  }

  #product(qkv: QKV, part: "q" | "k" | "v") {
    const product = qkv.products[part];
    if (!product) return html`<span class="lab">has only ${qkv[part].length} dimensions, no index ${qkv.dim}</span>`;
    const { name, data } = operand(qkv, product.of),
      bias = num(product.bias),
      parts = product.weights.map((w, i) => num(w) * num(data[i] as Num));
    return html`<span class="lab">row ${qkv.dim} of ${product.matrix}, and its elementwise product with ${name}</span>
      <gf-strip quiet .data=${product.weights} meaning="plain" label="row ${qkv.dim} of ${product.matrix}"></gf-strip>
      <gf-strip quiet .data=${parts} meaning="plain" label="products of ${name} with row ${qkv.dim}"></gf-strip>
      <gf-formula
        >${part}[${qkv.dim}] = ${bias ? html`${short(product.sum)} + ${short(bias)} = ` : "Σ = "}<b
          >${short(product.value)}</b
        ></gf-formula
      >`;
  }
}
