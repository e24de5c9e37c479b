/** Heat map of a vector: one cell for each value, with the exact value under the cursor. */
import { css, html, LitElement, nothing } from "lit";
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
import { exact, num, short, type Num } from "../lib/number.js";
import { largest } from "../lib/tensor.js";

@customElement("gf-strip")
export class Strip extends LitElement {
  @property({ attribute: false }) data: ArrayLike<Num> = [];
  @property() label = "";
  @property() meaning: Meaning = "plain";
  @property({ type: Boolean }) fractions = false; // 0 to 1, instead of signed
  @property({ type: Number }) top = 0; // value of the strongest colour; 0: the largest absolute value
  @property({ type: Number }) at = -1; // the cursor
  @property({ type: Number }) cut = 0; // draw a line before this index; 0: no line
  @property({ type: Boolean }) quiet = false; // hide the text below
  @property({ type: Boolean }) marksNonFinite = false; // hatch non-finite values
  @property({ attribute: false }) names: ((i: number) => string) | null = null;
  @state() private over = -1;
  @state() private focused = false; // has focus: a table of the values is rendered
  #stop = () => {};

  static override styles = [
    base,
    css`
      .frame {
        position: relative;
        border-radius: 4px;
        cursor: crosshair;
        box-shadow: 0 0 0 1px var(--line);
      }
      canvas {
        display: block;
        width: 100%;
        height: var(--height, 1.35rem);
        image-rendering: pixelated;
        border-radius: 4px;
      }
      .odd {
        background: repeating-linear-gradient(45deg, var(--soft) 0 1px, transparent 1px 5px);
      }
      .at {
        position: absolute;
        top: -3px;
        bottom: -3px;
        border: 2px solid var(--ink);
        border-radius: 3px;
        pointer-events: none;
        min-width: 6px;
      }
      .cut {
        position: absolute;
        top: -3px;
        bottom: -3px;
        width: 2px;
        margin-left: -1px;
        background: var(--ink);
        pointer-events: none;
      }
      .say {
        display: flex;
        justify-content: space-between;
        gap: 1rem;
        font-size: 0.78rem;
        color: var(--soft);
        margin-top: 0.2rem;
        min-height: 1.2em;
      }
    `,
  ];

  override connectedCallback(): void {
    super.connectedCallback();
    this.#stop = onColourSchemeChange(() => this.requestUpdate());
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#stop();
  }

  get #numbers(): Float64Array {
    return Float64Array.from({ length: this.data.length }, (_, i) => num(this.data[i] as Num));
  }

  /** The value of the strongest colour. */
  get scale(): number {
    return this.fractions ? 1 : this.top || largest(this.#numbers).size;
  }

  override render() {
    const n = this.data.length,
      shown = this.over >= 0 ? this.over : this.at;
    const place = (i: number) => ({ left: `calc(${(100 * i) / n}% - 1px)`, width: `calc(${100 / n}% + 2px)` });
    const name = (i: number) => this.names?.(i) ?? `[${i}]`;
    return html`<div
        class="frame ${this.marksNonFinite ? "odd" : ""}"
        tabindex="0"
        role="slider"
        aria-label=${this.label}
        aria-valuemin="0"
        aria-valuemax=${Math.max(0, n - 1)}
        aria-valuenow=${Math.max(0, this.at)}
        aria-valuetext=${this.at >= 0 && n ? `${name(this.at)} is ${exact(this.data[this.at] as Num)}` : `${n} values`}
        @focus=${() => (this.focused = true)}
        @blur=${() => (this.focused = false)}
        @keydown=${this.#key}
        @pointermove=${this.#move}
        @pointerleave=${() => (this.over = -1)}
        @click=${this.#click}
      >
        <canvas width=${Math.max(1, n)} height="1"></canvas>
        ${
          this.cut > 0 && this.cut < n
            ? html`<span class="cut" ${setStyle({ left: `${(100 * this.cut) / n}%` })}></span>`
            : nothing
        }
        ${this.at >= 0 && this.at < n ? html`<span class="at" ${setStyle(place(this.at))}></span>` : nothing}
      </div>
      ${this.focused ? this.#table(name) : nothing}
      ${
        this.quiet
          ? nothing
          : html`<div class="say">
              <span><slot></slot></span>
              <span class="num"
                >${
                  shown >= 0 && shown < n
                    ? `${name(shown)} = ${exact(this.data[shown] as Num)}`
                    : this.fractions
                      ? ""
                      : `${n} values, range ±${short(this.scale)}`
                }</span
              >
            </div>`
      }`;
  }

  #table(name: (i: number) => string) {
    return html`<div class="away">
      <table>
        <caption>
          ${this.label}
        </caption>
        <tbody>
          ${Array.from(
            { length: this.data.length },
            (_, i) =>
              html`<tr aria-current=${i === this.at ? "true" : nothing}>
                <th scope="row">${name(i)}</th>
                <td>${short(this.data[i] as Num)}</td>
              </tr>`,
          )}
        </tbody>
      </table>
    </div>`;
  }

  override updated(): void {
    const canvas = this.renderRoot.querySelector("canvas"),
      context = canvas?.getContext("2d");
    const numbers = this.#numbers;
    if (!canvas || !context || !numbers.length) return;
    const image = context.createImageData(numbers.length, 1),
      pixels = new Uint32Array(image.data.buffer);
    const scheme = currentScheme(),
      top = this.scale;
    numbers.forEach((x, i) => {
      if (Number.isFinite(x))
        pixels[i] = pixel(this.fractions ? fractionColour(x, scheme) : signedColour(x, top, this.meaning, scheme));
    });
    context.putImageData(image, 0, 0);
  }

  #index(event: PointerEvent | MouseEvent): number {
    const box = (event.currentTarget as HTMLElement).getBoundingClientRect();
    return Math.min(
      this.data.length - 1,
      Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * this.data.length)),
    );
  }

  #move = (event: PointerEvent) => (this.over = this.#index(event));
  #click = (event: MouseEvent) => this.#pick(this.#index(event));
  #key = (event: KeyboardEvent) => {
    if (event.shiftKey || event.ctrlKey || event.metaKey || event.altKey) return;
    const last = this.data.length - 1;
    const to = { ArrowLeft: this.at - 1, ArrowRight: this.at + 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#pick(Math.min(last, Math.max(0, to)));
  };

  #pick(i: number): void {
    this.at = i;
    this.dispatchEvent(new CustomEvent("pick", { detail: i }));
  }
}
