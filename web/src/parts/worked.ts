/** One attention cell worked out, number by number: products, sum, scale, cap, mask, exp, share, weighted value. Step by step where one steps. */
import { css, html, nothing, type TemplateResult } from "lit";
import { customElement, property, state } from "lit/decorators.js";
import "./stepper.js";
import "./strip.js";
import { num, percent, short, type Num } from "../lib/number.js";
import { largest } from "../lib/tensor.js";
import type { Cell } from "../shapes.js";
import { Follower } from "../view.js";
import { quoted, visible } from "./token.js";

interface Named {
  text: string;
}
interface Stage {
  id: string;
  title: string;
  shown: TemplateResult;
}

const name = (of: readonly Named[], i: number): string => visible(of[i]?.text ?? "");

@customElement("gf-worked")
export class Worked extends Follower {
  @property({ attribute: false }) cell: Cell | null = null;
  @property({ attribute: false }) queries: readonly Named[] = []; // the tokens that ask
  @property({ attribute: false }) keys: readonly Named[] = []; // and those that are asked
  @property({ type: Boolean }) unscaled = false; // every number from the scale on as if the scale were 1
  @state() private dim = 0;
  #shown = -1; // the stage that was brought into sight last

  static override styles = [
    Follower.styles,
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

  /** The stage that one has stepped to; -1: all of them are looked at. */
  get at(): number {
    const asked = Number(this.session.place.more["part"] ?? -1);
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
          this.session.more({ part: event.detail < 0 ? null : String(event.detail) })}
      >
        ${
          at < 0
            ? `step through its ${stages.length} stages`
            : `stage ${at + 1} of ${stages.length}: ${stages[at]?.id ?? ""}`
        }</gf-stepper
      >
      <ol>
        ${stages.map(
          (stage, i) =>
            html`<li aria-current=${i === at ? "step" : nothing}>
              <div class="line">
                <h3>${stage.title}</h3>
                ${stage.shown}
              </div>
            </li>`,
        )}
      </ol>`;
  }

  /** A stage that one has just stepped to comes into sight. */
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
    const root = Math.abs(num(cell.scale) - d ** -0.5) < 1e-6;
    const stages: Stage[] = [
      {
        id: "q·k",
        title: "Multiply, number by number",
        shown: html` <div class="strips">
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
        title: "Add them up: how well the two fit",
        shown: html`<p class="worked">all ${d} products together: <span class="num">${short(cell.sum)}</span></p>`,
      },
      {
        id: root ? "÷ √d" : "scale",
        title: "Scale, so that softmax does not saturate",
        shown: html`<p class="worked">
          <span class="num">${short(now.sum)} × ${short(now.scale)} = ${short(now.scaled)}</span>
          <span class="soft"
            >${
              this.unscaled
                ? "(switched off: the score stays as large as it is)"
                : root
                  ? `(1/√${d})`
                  : "(this model's own scale)"
            }</span
          >
        </p>`,
      },
    ];
    if (cell.softcap !== null)
      stages.push({
        id: "softcap",
        title: "Hold it under the cap",
        shown: html`<p class="worked">
          <span class="num"
            >${short(cell.softcap)} · tanh(${short(now.scaled)} / ${short(cell.softcap)}) = ${short(now.capped)}</span
          >
        </p>`,
      });
    if (num(cell.bias) !== 0)
      stages.push({
        id: "bias",
        title: "Add what the model adds for this distance",
        shown: html`<p class="worked">
          <span class="num"
            >${short(now.capped)} + ${short(cell.bias)} = ${short(num(now.capped) + num(cell.bias))}</span
          >
        </p>`,
      });
    stages.push(
      {
        id: "mask",
        title: "Mask: what may be seen",
        shown: html`<p class="worked">
          ${
            cell.visible
              ? html`${quoted(this.keys[cell.key]?.text)} may be seen: the score stays
                  <span class="num">${short(now.score)}</span>`
              : html`${this.#hidden(cell)}, so its score is <span class="num">−∞</span> and its share 0`
          }
        </p>`,
      },
      {
        id: "exp",
        title: "exp: every score becomes positive",
        shown: html`<p class="worked">
          <span class="num">exp(${short(now.score)} − ${short(now.largest)}) = ${short(now.exp)}</span>
          <span class="soft">(less the row's largest score, which keeps it from overflowing and changes no share)</span>
        </p>`,
      },
      {
        id: "÷ Σ",
        title: "Divide by the row's sum: shares that add up to 1",
        shown: html`<p class="worked">
            <span class="num">${short(now.exp)} / ${short(now.total)} = ${percent(now.prob, 2)}</span
            >${cell.sink === null ? nothing : html` <span class="soft">(the sum has the sink's part in it)</span>`}
          </p>
          <gf-strip
            shares
            quiet
            .data=${now.probs}
            .at=${cell.key}
            label="shares of all keys"
            .names=${(i: number) => `key ${i} ${name(this.keys, i)}`}
            @pick=${(event: CustomEvent<number>) => this.session.go({ key: event.detail })}
          ></gf-strip>`,
      },
      {
        id: "weighted V",
        title: "Take that much of the value",
        shown: html` <div class="strips">
            <span><span class="v">value</span> ${name(this.keys, cell.key)}</span
            >${strip(cell.v, "value", "value", values, vdim)}
            <span>${percent(now.prob)} of it</span>${strip(now.weighted, "weighted value", "value", values, vdim)}
            <span>all keys'</span>${strip(now.z, "z, the sum over all keys", "value", values, vdim)}
          </div>
          <p class="worked">
            [${vdim}]:
            <span class="num"
              >${percent(now.prob)} × <span class="v">${short(cell.v[vdim] as Num)}</span> =
              ${short(now.weighted[vdim] as Num)}</span
            >, and with all other keys' <span class="num">z[${vdim}] = ${short(now.z[vdim] as Num)}</span>
          </p>`,
      },
    );
    return stages;
  }

  #hidden(cell: Cell) {
    if (cell.key > cell.query) return html`${quoted(this.keys[cell.key]?.text)} comes later and may not be seen`;
    return html`${quoted(this.keys[cell.key]?.text)} is outside the window of ${cell.window} tokens`;
  }
}
