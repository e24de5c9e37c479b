/**
 * A matrix of numbers as a picture, one field for each, with a cursor: arrows move it, the pointer reads exact numbers, and a
 * table that only screen readers see holds the cursor's row.
 */
import { css, html, LitElement, nothing, type PropertyValues } from "lit";
import { customElement, property, state } from "lit/decorators.js";
import { look } from "../lib/look.js";
import { base } from "../style.js";
import { currentScheme, pixel, shareColour, signedColour, type Meaning } from "../lib/colour.js";
import { exact, fixed, short } from "../lib/number.js";
import { largest } from "../lib/tensor.js";
import { onScheme } from "./scheme.js";

const DRAWN = ["data", "rows", "columns", "shares", "causal", "top", "meaning", "still"] as const;

export interface Pick {
  row: number;
  column: number;
}

@customElement("gf-matrix")
export class Matrix extends LitElement {
  @property({ attribute: false }) data: ArrayLike<number | undefined> = []; // undefined: not there yet
  @property({ type: Number }) rows = 0;
  @property({ type: Number }) columns = 0;
  @property() label = "";
  @property() rowName = "row";
  @property() columnName = "column";
  @property() meaning: Meaning = "plain";
  @property({ type: Boolean }) shares = false; // 0 to 1, instead of signed
  @property({ type: Boolean }) causal = false; // nothing stands right of the diagonal
  @property({ type: Number }) top = 0;
  @property({ type: Number }) row = -1;
  @property({ type: Number }) column = -1;
  @property() rowTone = "var(--ink)";
  @property() columnTone = "var(--ink)";
  /** A row or column in words, after its name. */
  @property({ attribute: false }) rowLabel: (i: number) => string = String;
  @property({ attribute: false }) columnLabel: (i: number) => string = String;
  @property() note = ""; // what a number is, where it is not one of the tensor's own
  @property({ type: Boolean }) brief = false; // few digits
  @property({ type: Boolean }) odd = false; // what is no number is marked, instead of left out
  @property({ type: Boolean }) still = false; // a thumbnail: no cursor of its own
  @property({ type: Boolean }) inner = false; // of a larger one: arrows lead out of it
  @property({ type: Number }) rowHeight = 0; // CSS pixels; 0: fields are square
  @property({ type: Number }) most = 560; // CSS pixels, at most
  @state() private over: Pick | null = null;
  #stop = () => {};

  static override styles = [
    base,
    css`
      :host {
        display: block;
      }
      .frame {
        position: relative;
        cursor: crosshair;
        max-width: 100%;
      }
      .still {
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
    this.#stop = onScheme(() => this.requestUpdate("data"));
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#stop();
  }

  /** What the strongest colour stands for. */
  get scale(): number {
    return this.shares ? 1 : this.top || largest(this.data as ArrayLike<number>).size;
  }

  value(row: number, column: number): number | undefined {
    return this.data[row * this.columns + column];
  }

  override render() {
    const { rows, columns } = this;
    if (!rows || !columns) return nothing;
    const canvas = html`<canvas width=${columns} height=${rows}></canvas>`;
    const shape = look({
      width: `${this.most}px`,
      ...(this.rowHeight ? { height: `${rows * this.rowHeight}px` } : { "aspect-ratio": `${columns}/${rows}` }),
    });
    if (this.still) return html`<div class="frame still" ${shape} role="img" aria-label=${this.label}>${canvas}</div>`;
    const there = this.row >= 0 && this.column >= 0;
    const shown = this.over ?? (there ? { row: this.row, column: this.column } : null);
    return html`<div
        class="frame"
        ${shape}
        tabindex="0"
        role="application"
        aria-roledescription="picture of a matrix"
        aria-label="${this.label}. Arrow keys move."
        aria-describedby="say"
        @keydown=${this.#key}
        @pointermove=${this.#move}
        @pointerleave=${() => (this.over = null)}
        @click=${this.#click}
      >
        ${canvas}${this.odd ? this.#odd() : nothing}
        ${
          there
            ? html` <span
                  class="mark"
                  ${look({
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
                  ${look({
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
                  ${look({
                    left: `${(100 * this.column) / columns}%`,
                    top: `${(100 * this.row) / rows}%`,
                    width: `calc(${100 / columns}% - 2px)`,
                    height: `calc(${100 / rows}% - 2px)`,
                  })}
                ></span>`
            : nothing
        }
      </div>
      <p class="say" id="say" aria-live="polite">${shown ? this.#say(shown) : nothing}</p>
      ${this.row >= 0 && this.row < rows ? this.#table() : nothing}`;
  }

  #say({ row, column }: Pick) {
    return html`${this.rowName} <span class="num">${this.rowLabel(row)}</span> · ${this.columnName}
      <span class="num">${this.columnLabel(column)}</span>:
      <span class="num">${this.#read(row, column, this.brief ? short : exact)}</span
      >${this.note ? ` (${this.note})` : ""}`;
  }

  #read(row: number, column: number, written: (value: number) => string): string {
    const value = this.value(row, column);
    return this.#masked(row, column) ? "not seen" : value === undefined ? "not yet" : written(value);
  }

  /** A mark where a number is none: NaN and infinity have no colour. */
  #odd() {
    const { rows, columns } = this,
      which = Array.from({ length: rows * columns }, (_, i) => i).filter(
        (i) => this.data[i] !== undefined && !Number.isFinite(this.data[i]),
      );
    return which.map(
      (i) =>
        html`<span
          class="odd"
          ${look({
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
                <td>${this.#read(this.row, i, (value) => fixed(value, 4))}</td>
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
    if (!DRAWN.some((name) => changed.has(name))) return; // the cursor alone has moved
    const { rows, columns, data } = this;
    const context = this.renderRoot.querySelector("canvas")?.getContext("2d");
    if (!context || data.length < rows * columns) return;
    const image = context.createImageData(columns, rows),
      words = new Uint32Array(image.data.buffer);
    const scheme = currentScheme(),
      top = this.scale;
    for (let i = 0; i < rows * columns; i++) {
      const x = data[i] as number;
      if (!Number.isFinite(x) || this.#masked(Math.floor(i / columns), i % columns)) continue; // left transparent
      words[i] = pixel(this.shares ? shareColour(x, scheme) : signedColour(x, top, this.meaning, scheme));
    }
    context.putImageData(image, 0, 0);
  }

  #place(event: PointerEvent | MouseEvent): Pick {
    const box = (event.currentTarget as HTMLElement).getBoundingClientRect();
    const along = (at: number, size: number, n: number) => Math.min(n - 1, Math.max(0, Math.floor((at / size) * n)));
    return {
      row: along(event.clientY - box.top, box.height, this.rows),
      column: along(event.clientX - box.left, box.width, this.columns),
    };
  }

  #move = (event: PointerEvent) => (this.over = this.#place(event));
  #click = (event: MouseEvent) => this.#pick(this.#place(event));
  #key = (event: KeyboardEvent) => {
    if (event.shiftKey || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const within = (x: number, n: number) => (this.inner ? x : Math.min(n - 1, Math.max(0, x)));
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
