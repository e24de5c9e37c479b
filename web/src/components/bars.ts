/** Horizontal bar chart. */
import { css, html, LitElement, nothing } from "lit";
import { customElement, property } from "lit/decorators.js";
import { setStyle } from "../lib/set_style.js";
import { base } from "../style.js";
import { num, percent, type Num } from "../lib/number.js";
import { visibleText } from "./token.js";

export interface Bar {
  label: string;
  value: Num;
  text?: string;
  chosen?: boolean;
  index?: number;
  note?: string;
}

@customElement("gf-bars")
export class Bars extends LitElement {
  @property({ attribute: false }) bars: Bar[] = [];
  @property() label = "";
  @property({ type: Number }) top = 0; // value of a full bar; 0: the largest value
  @property() meaning: "plain" | "query" | "key" | "value" | "residual" | "forward" = "plain";
  @property({ type: Boolean }) tokens = false; // labels are tokens
  @property({ type: Boolean }) pick = false;
  @property({ type: Boolean }) wide = false; // labels are long

  static override styles = [
    base,
    css`
      table {
        border-collapse: collapse;
        width: 100%;
        font-size: 0.82rem;
      }
      caption {
        position: relative;
      }
      th {
        text-align: left;
        font-weight: 400;
        white-space: nowrap;
        padding: 0.1rem 0.7rem 0.1rem 0;
        max-width: 10rem;
        overflow: hidden;
        text-overflow: ellipsis;
        width: 1%;
      }
      th i {
        font-style: normal;
        color: var(--soft);
        display: inline-block;
        min-width: 2.2em;
      }
      .wide th {
        max-width: none;
        white-space: normal;
        width: 45%;
      }
      td {
        padding: 0.1rem 0;
      }
      td.n {
        text-align: right;
        padding-left: 0.6rem;
        white-space: nowrap;
        width: 1%;
      }
      .track {
        position: relative;
        height: 0.72rem;
        min-width: 2.5rem;
      }
      .bar {
        position: absolute;
        inset: 0 auto 0 0;
        border-radius: 2px;
        background: var(--tone, var(--soft));
        min-width: 1px;
      }
      .signed .bar {
        inset: 0 auto;
      }
      .middle {
        position: absolute;
        left: 50%;
        top: -3px;
        bottom: -3px;
        border-left: 1px solid var(--line);
      }
      tr.chosen th {
        font-weight: 650;
      }
      th button {
        all: unset;
        cursor: pointer;
      }
      th button:focus-visible {
        outline: 2px solid var(--focus);
        outline-offset: 1px;
      }
      .less .bar {
        background: transparent;
        border: 1.5px solid var(--tone, var(--soft));
      }
    `,
  ];

  override render() {
    const values = this.bars.map((bar) => num(bar.value)).filter(Number.isFinite);
    const top = this.top || Math.max(1e-30, ...values.map(Math.abs));
    const signed = values.some((value) => value < 0);
    const tone = this.meaning === "plain" ? "var(--soft)" : `var(--${this.meaning})`;
    return html`<table ${setStyle({ "--tone": tone })} class=${this.wide ? "wide" : ""}>
      <caption>
        <span class="away">${this.label}</span>
      </caption>
      <tbody class=${signed ? "signed" : ""}>
        ${this.bars.map((bar, i) => this.#row(bar, i, top, signed))}
      </tbody>
    </table>`;
  }

  #row(bar: Bar, i: number, top: number, signed: boolean) {
    const text = this.tokens ? html`<span class="num">${visibleText(bar.label)}</span>` : bar.label;
    const label = bar.index === undefined ? text : html`<i class="num">${bar.index}</i>${text}`;
    const value = num(bar.value),
      size = Number.isFinite(value) ? Math.min(1, Math.abs(value) / top) * (signed ? 50 : 100) : 0;
    const from = signed ? (value < 0 ? 50 - size : 50) : 0;
    return html`<tr class="${bar.chosen ? "chosen" : ""} ${value < 0 ? "less" : ""}">
      <th scope="row" title=${bar.note ?? nothing}>
        ${
          this.pick
            ? html`<button @click=${() => this.dispatchEvent(new CustomEvent("pick", { detail: i }))}>${label}</button>`
            : label
        }
      </th>
      <td>
        <div class="track">
          ${signed ? html`<span class="middle"></span>` : nothing}<span
            class="bar"
            ${setStyle({ left: `${from}%`, width: `${size}%` })}
          ></span>
        </div>
      </td>
      <td class="n num">${bar.text ?? percent(bar.value)}</td>
    </tr>`;
  }
}
