/**
 * Heat map of a matrix with a cursor. Arrow keys move the cursor, the pointer shows exact values, and a visually hidden
 * table holds the cursor's row for screen readers.
 */
import { css, html, LitElement, nothing, type PropertyValues } from "lit";
import { customElement, property, state } from "lit/decorators.js";
import { setStyle } from "../lib/set_style.js";
import { base } from "../style.js";
import {
  currentScheme,
  onColourSchemeChange,
  pixel,
  fractionColour,
  signedColour,
  type Meaning,
} from "../lib/colour.js";
import { approximate, exact, fixed, short } from "../lib/number.js";
import { largest } from "../lib/tensor.js";

const DRAWN_PROPERTIES = ["data", "rows", "columns", "fractions", "causal", "top", "meaning", "thumbnail"] as const;

export interface Pick {
  row: number;
  column: number;
}

@customElement("gf-matrix")
export class Matrix extends LitElement {
  @property({ attribute: false }) data: ArrayLike<number | undefined> = []; // undefined: pending
  @property({ type: Number }) rows = 0;
  @property({ type: Number }) columns = 0;
  @property() label = "";
  @property() rowName = "row";
  @property() columnName = "column";
  @property() meaning: Meaning = "plain";
  @property({ type: Boolean }) fractions = false; // fractions from 0 to 1 instead of signed values
  @property({ type: Boolean }) causal = false; // cells right of the diagonal are masked
  @property({ type: Number }) top = 0;
  @property({ type: Number }) row = -1;
  @property({ type: Number }) column = -1;
  @property() rowTone = "var(--ink)";
  @property() columnTone = "var(--ink)";
  /** The label of a row or column, shown after its name. */
  @property({ attribute: false }) rowLabel: (i: number) => string = String;
  @property({ attribute: false }) columnLabel: (i: number) => string = String;
  @property() note = ""; // unit of the values
  @property({ type: Boolean }) brief = false; // show few digits
  @property({ type: Number }) bound = 0; // largest error of the values; 0: they are exact
  @property({ type: Boolean }) marksNonFinite = false; // mark non-finite values
  @property({ type: Boolean }) thumbnail = false; // thumbnail without a cursor
  @property({ type: Boolean }) tile = false; // tile of a larger matrix: the cursor may leave it
  @property({ type: Number }) rowHeight = 0; // CSS pixels; 0: square cells
  @property({ type: Number }) maxWidth = 560; // maximum width in CSS pixels
  @state() private over: Pick | null = null;
  #stop = () => {};

  static override styles = [
    base,
    css`
      .frame {
        position: relative;
        cursor: crosshair;
        max-width: 100%;
      }
      .thumbnail {
        cursor: inherit;
      }
      canvas {
        display: block;
        width: 100%;
        height: 100%;
        image-rendering: pixelated;
      }
      .frame::after {
        content: "";
        position: absolute;
        inset: -1px;
        border: 1px solid var(--line);
        pointer-events: none;
        border-radius: 2px;
      }
      .mark {
        position: absolute;
        pointer-events: none;
        border: 0 solid;
      }
      .cell {
        position: absolute;
        pointer-events: none;
        border: 2px solid var(--ink);
        min-width: 7px;
        min-height: 7px;
        transform: translate(-1px, -1px);
        box-sizing: content-box;
        border-radius: 2px;
      }
      .odd {
        position: absolute;
        pointer-events: none;
        display: grid;
        place-items: center;
        overflow: hidden;
        font-size: 0.8rem;
        line-height: 1;
      }
      .say {
        font-size: 0.8rem;
        color: var(--soft);
        min-height: 1.5em;
        margin-top: 0.45rem;
        max-width: none;
      }
    `,
  ];

  override connectedCallback(): void {
    super.connectedCallback();
    this.#stop = onColourSchemeChange(() => this.requestUpdate("data"));
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#stop();
  }

  /** The value of the strongest colour. */
  get scale(): number {
    return this.fractions ? 1 : this.top || largest(this.data as ArrayLike<number>).size;
  }

  value(row: number, column: number): number | undefined {
    return this.data[row * this.columns + column];
  }

  override render() {
    const { rows, columns } = this;
    if (!rows || !columns) return nothing;
    const canvas = html`<canvas width=${columns} height=${rows}></canvas>`;
    const shape = setStyle({
      width: `${this.maxWidth}px`,
      ...(this.rowHeight ? { height: `${rows * this.rowHeight}px` } : { "aspect-ratio": `${columns}/${rows}` }),
    });
    if (this.thumbnail)
      return html`<div class="frame thumbnail" ${shape} role="img" aria-label=${this.label}>${canvas}</div>`;
    const hasCursor = this.row >= 0 && this.column >= 0;
    const shown = this.over ?? (hasCursor ? { row: this.row, column: this.column } : null);
    return html`<div
        class="frame"
        ${shape}
        tabindex="0"
        role="application"
        aria-roledescription="heat map"
        aria-label="${this.label}. Use arrow keys to move."
        aria-describedby="say"
        @keydown=${this.#key}
        @pointermove=${this.#move}
        @pointerleave=${() => (this.over = null)}
        @click=${this.#click}
      >
        ${canvas}${this.marksNonFinite ? this.#nonFinite() : nothing}
        ${
          hasCursor
            ? html` <span
                  class="mark"
                  ${setStyle({
                    left: 0,
                    right: 0,
                    top: `${(100 * this.row) / rows}%`,
                    height: `${100 / rows}%`,
                    "border-block-width": "1px",
                    "border-color": this.rowTone,
                  })}
                ></span>
                <span
                  class="mark"
                  ${setStyle({
                    top: 0,
                    bottom: 0,
                    left: `${(100 * this.column) / columns}%`,
                    width: `${100 / columns}%`,
                    "border-inline-width": "1px",
                    "border-color": this.columnTone,
                  })}
                ></span>
                <span
                  class="cell"
                  ${setStyle({
                    left: `${(100 * this.column) / columns}%`,
                    top: `${(100 * this.row) / rows}%`,
                    width: `calc(${100 / columns}% - 2px)`,
                    height: `calc(${100 / rows}% - 2px)`,
                  })}
                ></span>`
            : nothing
        }
      </div>
      <p class="say" id="say" aria-live="polite">${shown ? this.#readout(shown) : nothing}</p>
      ${this.row >= 0 && this.row < rows ? this.#table() : nothing}`;
  }

  #readout({ row, column }: Pick) {
    return html`${this.rowName} <span class="num">${this.rowLabel(row)}</span> · ${this.columnName}
      <span class="num">${this.columnLabel(column)}</span> =
      <span class="num">${this.#format(row, column, this.bound ? this.#approximate : this.brief ? short : exact)}</span
      >${this.note ? ` (${this.note})` : ""}`;
  }

  #format(row: number, column: number, format: (value: number) => string): string {
    const value = this.value(row, column);
    return this.#masked(row, column) ? "masked" : value === undefined ? "pending" : format(value);
  }

  #approximate = (value: number): string => approximate(value, this.bound);

  /** Mark NaN and infinity, which have no colour. */
  #nonFinite() {
    const { rows, columns } = this,
      which = Array.from({ length: rows * columns }, (_, i) => i).filter(
        (i) => this.data[i] !== undefined && !Number.isFinite(this.data[i]),
      );
    return which.map(
      (i) =>
        html`<span
          class="odd"
          ${setStyle({
            left: `${(100 * (i % columns)) / columns}%`,
            top: `${(100 * Math.floor(i / columns)) / rows}%`,
            width: `${100 / columns}%`,
            height: `${100 / rows}%`,
          })}
          >×</span
        >`,
    );
  }

  #table() {
    const cells = Array.from({ length: this.columns }, (_, i) => i).filter((i) => !this.#masked(this.row, i));
    return html`<div class="away">
      <table>
        <caption>
          ${this.label}: ${this.rowName} ${this.rowLabel(this.row)}
        </caption>
        <tbody>
          ${cells.map(
            (i) =>
              html`<tr aria-current=${i === this.column ? "true" : nothing}>
                <th scope="row">${this.columnName} ${this.columnLabel(i)}</th>
                <td>${this.#format(this.row, i, this.bound ? this.#approximate : (value) => fixed(value, 4))}</td>
              </tr>`,
          )}
        </tbody>
      </table>
    </div>`;
  }

  #masked(row: number, column: number): boolean {
    return this.causal && column > row;
  }

  override updated(changed: PropertyValues<this>): void {
    if (!DRAWN_PROPERTIES.some((name) => changed.has(name))) return; // only the cursor moved
    const { rows, columns, data } = this;
    const context = this.renderRoot.querySelector("canvas")?.getContext("2d");
    if (!context || data.length < rows * columns) return;
    const image = context.createImageData(columns, rows),
      pixels = new Uint32Array(image.data.buffer);
    const scheme = currentScheme(),
      top = this.scale;
    for (let i = 0; i < rows * columns; i++) {
      const x = data[i] as number;
      if (!Number.isFinite(x) || this.#masked(Math.floor(i / columns), i % columns)) continue; // stays transparent
      pixels[i] = pixel(this.fractions ? fractionColour(x, scheme) : signedColour(x, top, this.meaning, scheme));
    }
    context.putImageData(image, 0, 0);
  }

  #cellAt(event: PointerEvent | MouseEvent): Pick {
    const box = (event.currentTarget as HTMLElement).getBoundingClientRect();
    const index = (at: number, size: number, n: number) => Math.min(n - 1, Math.max(0, Math.floor((at / size) * n)));
    return {
      row: index(event.clientY - box.top, box.height, this.rows),
      column: index(event.clientX - box.left, box.width, this.columns),
    };
  }

  #move = (event: PointerEvent) => (this.over = this.#cellAt(event));
  #click = (event: MouseEvent) => this.#pick(this.#cellAt(event));
  #key = (event: KeyboardEvent) => {
    if (event.shiftKey || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const within = (x: number, n: number) => (this.tile ? x : Math.min(n - 1, Math.max(0, x)));
    this.over = null;
    this.#pick({
      row: within(this.row + (step[0] as number), this.rows),
      column: within(this.column + (step[1] as number), this.columns),
    });
  };

  #pick(detail: Pick): void {
    this.dispatchEvent(new CustomEvent<Pick>("pick", { detail }));
  }
}
