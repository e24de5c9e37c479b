/** Alignment matrix: one row for each target token, one column for each source token. */
import { css, html, LitElement, nothing } from "lit";
import { customElement, property } from "lit/decorators.js";
import "./matrix.js";
import { setStyle } from "../lib/set_style.js";
import { num } from "../lib/number.js";
import { base } from "../style.js";
import type { Alignment } from "../api_types.js";
import type { Pick } from "./matrix.js";
import { visibleText } from "./token.js";

const FIELD = 24,
  SMALL = 15; // CSS pixels
const MAX_WIDTH = 640; // of the matrix

@customElement("gf-alignment-matrix")
export class AlignmentMatrix extends LitElement {
  @property({ attribute: false }) of: Alignment | null = null;
  @property({ type: Number }) row = -1;
  @property({ type: Number }) column = -1;
  @property({ type: Boolean }) small = false;
  #drawn: { of: Alignment | null; data: Float64Array } = { of: null, data: new Float64Array() };

  static override styles = [
    base,
    css`
      :host {
        display: block;
        overflow-x: auto;
      }
      .grid {
        display: grid;
        grid-template-columns: auto auto;
        width: max-content;
        font-family: var(--mono);
        font-size: 0.78rem;
        gap: 2px 6px;
      }
      .small {
        font-size: 0.62rem;
      }
      .columns {
        display: flex;
        align-items: end;
        grid-column: 2;
      }
      .columns span {
        writing-mode: vertical-rl;
        transform: rotate(180deg);
        max-height: 8rem;
        overflow: hidden;
        white-space: nowrap;
        display: flex;
        align-items: center;
        padding-inline: 3px;
      }
      .rows {
        grid-column: 1;
      }
      .rows span {
        display: flex;
        align-items: center;
        justify-content: flex-end;
        white-space: nowrap;
        max-width: 9rem;
        overflow: hidden;
      }
      .here {
        font-weight: 700;
      }
      .rows .here {
        color: var(--query);
      }
      .columns .here {
        color: var(--key);
      }
    `,
  ];

  /** The cached array of the current alignment, so that an unchanged matrix is not redrawn. */
  get #data(): Float64Array {
    if (this.of !== this.#drawn.of)
      this.#drawn = { of: this.of, data: Float64Array.from((this.of?.probs ?? []).flat(), num) };
    return this.#drawn.data;
  }

  override render() {
    const { of } = this;
    if (!of) return nothing;
    const columns = of.source.length,
      rows = of.target.length;
    const field = Math.max(6, Math.min(this.small ? SMALL : FIELD, Math.min(MAX_WIDTH, innerWidth - 110) / columns));
    const name = (side: Alignment["source"], i: number) =>
      side === of.target && of.ended && i === rows - 1 ? "(end)" : visibleText(side[i]?.text ?? "");
    return html`<div class="grid ${this.small ? "small" : ""}">
      <div class="columns" aria-hidden="true">
        ${of.source.map(
          (_, i) =>
            html`<span class=${i === this.column ? "here" : ""} ${setStyle({ width: `${field}px` })}
              >${name(of.source, i)}</span
            >`,
        )}
      </div>
      <div class="rows" aria-hidden="true">
        ${of.target.map(
          (_, i) =>
            html`<span class=${i === this.row ? "here" : ""} ${setStyle({ height: `${field}px` })}
              >${name(of.target, i)}</span
            >`,
        )}
      </div>
      <gf-matrix
        fractions
        maxWidth=${field * columns}
        rowHeight=${field}
        .data=${this.#data}
        .rows=${rows}
        .columns=${columns}
        .row=${this.row}
        .column=${this.column}
        rowName="target"
        columnName="source"
        rowTone="var(--query)"
        columnTone="var(--key)"
        .rowLabel=${(i: number) => `${i} ${name(of.target, i)}`}
        .columnLabel=${(i: number) => `${i} ${name(of.source, i)}`}
        label="Alignment"
        @pick=${(event: CustomEvent<Pick>) =>
          this.dispatchEvent(new CustomEvent<Pick>("pick", { detail: event.detail }))}
      ></gf-matrix>
    </div>`;
  }
}
