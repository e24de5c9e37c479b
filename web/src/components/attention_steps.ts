/** The computation of one attention weight in stages: dot product, scale, softcap, mask, softmax, weighted value. */
import { css, html, nothing, type TemplateResult } from "lit";
import { customElement, property, state } from "lit/decorators.js";
import "./stepper.js";
import "./strip.js";
import { num, percent, short, type Num } from "../lib/number.js";
import { largest } from "../lib/tensor.js";
import type { Cell } from "../api_types.js";
import { SessionElement } from "../view.js";
import { inlineToken, visibleText } from "./token.js";

interface Named {
  text: string;
}
interface Stage {
  id: string;
  title: string;
  content: TemplateResult;
}

const name = (of: readonly Named[], i: number): string => visibleText(of[i]?.text ?? "");

@customElement("gf-attention-steps")
export class AttentionSteps extends SessionElement {
  @property({ attribute: false }) cell: Cell | null = null;
  @property({ attribute: false }) queries: readonly Named[] = []; // tokens of the queries
  @property({ attribute: false }) keys: readonly Named[] = []; // tokens of the keys
  @property({ type: Boolean }) unscaled = false; // show the values for a scale of 1
  @state() private dim = 0;
  #shown = -1; // the stage that was scrolled into view last

  static override styles = [
    SessionElement.styles,
    css`
      gf-stepper {
        position: sticky;
        top: 0;
        z-index: 1;
        background: var(--paper);
        padding: 0.4rem 0;
        display: block;
        margin-bottom: 0.4rem;
      }
      ol {
        display: grid;
        gap: 0.35rem;
        counter-reset: step;
      }
      li {
        display: grid;
        grid-template-columns: 1.6rem minmax(0, 1fr);
        counter-increment: step;
        padding: 0.45rem 0.7rem 0.45rem 0.5rem;
        border-left: 3px solid transparent;
        border-radius: 6px;
        scroll-margin: 3.5rem;
      }
      li::before {
        content: counter(step);
        color: var(--soft);
        font-size: 0.82rem;
        padding-top: 0.12rem;
      }
      li[aria-current] {
        border-left-color: var(--ink);
        background: var(--card);
        box-shadow: 0 0 0 1px var(--line);
      }
      li[aria-current] .num {
        font-weight: 700;
      }
      .line {
        display: grid;
        gap: 0.3rem;
        min-width: 0;
      }
      .strips {
        display: grid;
        grid-template-columns: 5.2rem minmax(0, 1fr);
        gap: 0.3rem 0.8rem;
        align-items: center;
        font-size: 0.8rem;
      }
      .worked {
        font-size: 0.88rem;
      }
      @media (max-width: 720px) {
        .strips {
          grid-template-columns: 3.6rem minmax(0, 1fr);
        }
        gf-stepper {
          top: 2.6rem;
        }
      }
    `,
  ];

  /** The current stage; -1: none. */
  get at(): number {
    const asked = Number(this.session.address.options["cell_stage"] ?? -1);
    return Number.isInteger(asked) ? asked : -1;
  }

  override render() {
    const { cell } = this;
    if (!cell) return nothing;
    const stages = this.#stages(cell),
      at = Math.min(this.at, stages.length - 1);
    return html`<gf-stepper
        none
        .session=${this.session}
        .at=${at}
        .n=${stages.length}
        @step=${(event: CustomEvent<number>) =>
          this.session.setOptions({ cell_stage: event.detail < 0 ? null : String(event.detail) })}
      >
        ${
          at < 0
            ? `step through ${stages.length} stages`
            : `stage ${at + 1} of ${stages.length}: ${stages[at]?.id ?? ""}`
        }</gf-stepper
      >
      <ol>
        ${stages.map(
          (stage, i) =>
            html`<li aria-current=${i === at ? "step" : nothing}>
              <div class="line">
                <h3>${stage.title}</h3>
                ${stage.content}
              </div>
            </li>`,
        )}
      </ol>`;
  }

  /** Scroll a new current stage into view. */
  override updated(): void {
    if (this.at === this.#shown) return;
    this.#shown = this.at;
    if (this.at >= 0) this.renderRoot.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
  }

  #stages(cell: Cell): Stage[] {
    const now = this.unscaled ? { ...cell, ...cell.unscaled, scale: 1, scaled: cell.sum } : cell;
    const size = (...of: Num[][]) => Math.max(...of.map((one) => largest(one.map(num)).size));
    const dim = Math.min(this.dim, cell.q.length - 1),
      move = (event: CustomEvent<number>) => (this.dim = event.detail);
    const strip = (data: Num[], label: string, meaning: string, top = 0, at = dim) =>
      html`<gf-strip
        quiet
        .data=${data}
        .top=${top}
        .at=${at}
        label=${label}
        meaning=${meaning}
        @pick=${move}
      ></gf-strip>`;
    const qk = size(cell.q, cell.k),
      values = size(cell.v),
      d = cell.q.length,
      vdim = Math.min(dim, cell.v.length - 1);
    const standard = Math.abs(num(cell.scale) - d ** -0.5) < 1e-6;
    const scaleNote = this.unscaled ? "scaling is off" : standard ? `1/√${d}` : "scale of this model";
    const stages: Stage[] = [
      {
        id: "q·k",
        title: "Multiply elementwise",
        content: html` <div class="strips">
            <span><span class="q">query</span> ${name(this.queries, cell.query)}</span
            >${strip(cell.q, "query", "query", qk)}
            <span><span class="k">key</span> ${name(this.keys, cell.key)}</span>${strip(cell.k, "key", "key", qk)}
            <span>products</span>${strip(cell.products, "products", "plain")}
          </div>
          <p class="worked">
            [${dim}]:
            <span class="num"
              ><span class="q">${short(cell.q[dim] as Num)}</span> ×
              <span class="k">${short(cell.k[dim] as Num)}</span> = ${short(cell.products[dim] as Num)}</span
            >
          </p>`,
      },
      {
        id: "sum",
        title: "Sum: the dot product",
        content: html`<p class="worked">sum of ${d} products: <span class="num">${short(cell.sum)}</span></p>`,
      },
      {
        id: standard ? "÷ √d" : "scale",
        title: "Scale, so that the softmax does not saturate",
        content: html`<p class="worked">
          <span class="num">${short(now.sum)} × ${short(now.scale)} = ${short(now.scaled)}</span>
          <span class="soft">(${scaleNote})</span>
        </p>`,
      },
    ];
    if (cell.softcap !== null)
      stages.push({
        id: "softcap",
        title: "Softcap",
        content: html`<p class="worked">
          <span class="num"
            >${short(cell.softcap)} · tanh(${short(now.scaled)} / ${short(cell.softcap)}) = ${short(now.capped)}</span
          >
        </p>`,
      });
    if (num(cell.bias) !== 0)
      stages.push({
        id: "bias",
        title: "Add the position bias",
        content: html`<p class="worked">
          <span class="num"
            >${short(now.capped)} + ${short(cell.bias)} = ${short(num(now.capped) + num(cell.bias))}</span
          >
        </p>`,
      });
    stages.push(
      {
        id: "mask",
        title: "Mask",
        content: html`<p class="worked">
          ${
            cell.visible
              ? html`${inlineToken(this.keys[cell.key]?.text)} is visible: the score stays
                  <span class="num">${short(now.score)}</span>`
              : html`${this.#maskReason(cell)}, so its score is <span class="num">−∞</span> and its weight 0`
          }
        </p>`,
      },
      {
        id: "exp",
        title: "Exponentiate",
        content: html`<p class="worked">
          <span class="num">exp(${short(now.score)} − ${short(now.largest)}) = ${short(now.exp)}</span>
          <span class="soft">(the row's maximum is subtracted against overflow; the weights do not change)</span>
        </p>`,
      },
      {
        id: "÷ Σ",
        title: "Normalise: attention weights sum to 1",
        content: html`<p class="worked">
            <span class="num">${short(now.exp)} / ${short(now.total)} = ${percent(now.prob, 2)}</span
            >${cell.sink === null ? nothing : html` <span class="soft">(the sum includes the attention sink)</span>`}
          </p>
          <gf-strip
            fractions
            quiet
            .data=${now.probs}
            .at=${cell.key}
            label="attention weights of all keys"
            .names=${(i: number) => `key ${i} ${name(this.keys, i)}`}
            @pick=${(event: CustomEvent<number>) => this.session.navigate({ key: event.detail })}
          ></gf-strip>`,
      },
      {
        id: "weighted V",
        title: "Weight the value vector",
        content: html` <div class="strips">
            <span><span class="v">value</span> ${name(this.keys, cell.key)}</span
            >${strip(cell.v, "value", "value", values, vdim)}
            <span>${percent(now.prob)} of it</span>${strip(now.weighted, "weighted value", "value", values, vdim)}
            <span>sum over keys</span>${strip(now.z, "z, the sum over all keys", "value", values, vdim)}
          </div>
          <p class="worked">
            [${vdim}]:
            <span class="num"
              >${percent(now.prob)} × <span class="v">${short(cell.v[vdim] as Num)}</span> =
              ${short(now.weighted[vdim] as Num)}</span
            >; summed over all keys <span class="num">z[${vdim}] = ${short(now.z[vdim] as Num)}</span>
          </p>`,
      },
    );
    return stages;
  }

  #maskReason(cell: Cell) {
    if (cell.key > cell.query) return html`${inlineToken(this.keys[cell.key]?.text)} is a later token and is masked`;
    return html`${inlineToken(this.keys[cell.key]?.text)} is outside the sliding window of ${cell.window} tokens`;
  }
}
