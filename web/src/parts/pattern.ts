/**
 * The attention of one head. Up to 256 tokens it is drawn number by number; a longer text as its largest values, field by
 * field (a mean would hide spikes), with a piece of it beside, number by number, around the cursor. Nearer: fewer fields.
 */
import { css, html, nothing } from "lit";
import { customElement, property } from "lit/decorators.js";
import "./matrix.js";
import "./refused.js";
import { Ask } from "../ask.js";
import type { Tensor } from "../lib/tensor.js";
import { Follower } from "../view.js";
import type { Pick } from "./matrix.js";
import { visible } from "./token.js";
import { cut, follow, SIZES, type Piece } from "./zoom.js";

const WHOLE = 256,
  STEP = 128;

/** Where a piece of 256 begins that holds this place, so that small steps ask for nothing new. */
export const begin = (at: number, n: number): number =>
  Math.max(0, Math.min(n - WHOLE, Math.floor((at - STEP / 2) / STEP) * STEP));

@customElement("gf-pattern")
export class Pattern extends Follower {
  @property({ type: Number }) most = 560;
  @property({ type: Boolean }) zooms = false; // with the means to come nearer
  #near: Piece | null = null; // in sight
  #cursor = ""; // that it was made for
  #dragged: { x: number; y: number; from: Piece; moved: boolean } | null = null;
  #all = new Ask<Tensor>(
    this,
    () => {
      const { layer, head } = this.session.here;
      return this.session.tensor(`blocks.${layer}.attn.probs`, {
        slice: `${head},:,:`,
        ...(this.#long ? { dtype: "u8", pool: WHOLE } : { dtype: "f32" }),
      });
    },
    "tensor",
  );
  #piece = new Ask<Tensor>(
    this,
    () => {
      const { layer, head } = this.session.here,
        [row, column] = this.#corner;
      return this.#long
        ? this.session.tensor(`blocks.${layer}.attn.probs`, {
            slice: `${head},${row}:${row + WHOLE},${column}:${column + WHOLE}`,
            dtype: "f32",
          })
        : null;
    },
    "tensor",
  );

  static override styles = [
    Follower.styles,
    css`
      h3 {
        margin: 0.6rem 0 0.5rem;
      }
      .row {
        margin-bottom: 0.6rem;
        align-items: center;
      }
      .near {
        touch-action: none;
      }
    `,
  ];

  get #long(): boolean {
    return this.session.tokens.length > WHOLE;
  }

  get #corner(): [number, number] {
    const { query, key } = this.session.here,
      n = this.session.tokens.length;
    return this.#long ? [begin(query, n), begin(key, n)] : [0, 0];
  }

  get error(): string | null {
    return this.#all.error?.message ?? this.#piece.error?.message ?? null;
  }

  /** What was drawn, for its receipt. */
  get tensor(): Tensor | null {
    return this.#all.value;
  }

  /** How near: fields along a side; 0: all. */
  get #size(): number {
    const asked = Number(this.session.place.more["zoom"] ?? 0),
      there = Math.min(WHOLE, this.session.tokens.length);
    return this.zooms && SIZES.some((size) => size === asked) && asked < there ? asked : 0;
  }

  #name = (i: number): string => `${i} ${visible(this.session.tokens[i]?.text ?? "")}`;

  override render() {
    const all = this.#all.value,
      { here } = this.session,
      of = `block ${here.layer}, head ${here.head}`;
    if (this.error) return html`<gf-refused reason=${this.error}></gf-refused>`;
    if (!all) return nothing;
    const [rows = 0, columns = 0] = all.shape.slice(-2),
      [high, wide] = all.pool ?? [1, 1],
      size = this.#size;
    const names = (cells: number) => (i: number) =>
      cells === 1 ? this.#name(i) : `${i * cells} to ${(i + 1) * cells - 1}`;
    const within = (i: number) => Math.min(this.session.tokens.length - 1, Math.max(0, i));
    const go = (query: number, key: number) => this.session.go({ query: within(query), key: within(key) });
    const whole = html`<gf-matrix
      class="all"
      shares
      ?causal=${this.session.causal}
      label="Attention of ${of}"
      most=${this.most}
      .data=${all.data}
      .rows=${rows}
      .columns=${columns}
      rowName="query"
      columnName="key"
      .row=${Math.floor(here.query / (high ?? 1))}
      .column=${Math.floor(here.key / (wide ?? 1))}
      rowTone="var(--query)"
      columnTone="var(--key)"
      .rowLabel=${names(high ?? 1)}
      .columnLabel=${names(wide ?? 1)}
      note=${high === 1 ? "" : `the largest of ${high} × ${wide}`}
      @pick=${({ detail }: CustomEvent<Pick>) => go(detail.row * (high ?? 1), detail.column * (wide ?? 1))}
    ></gf-matrix>`;
    return html`${this.zooms ? this.#nearer(size) : nothing}${size && !this.#long ? nothing : whole}${
      size || this.#long ? this.#tile(of, size, go) : nothing
    }`;
  }

  #nearer(size: number) {
    const there = Math.min(WHOLE, this.session.tokens.length),
      sizes = [0, ...SIZES.filter((one) => one < there)],
      at = Math.max(0, sizes.indexOf(size));
    const to = (i: number) => this.session.more({ zoom: sizes[i] ? String(sizes[i]) : null });
    return html`<div class="row" role="group" aria-label="Zoom">
      <button ?disabled=${at === 0} @click=${() => to(at - 1)}>zoom out</button
      ><button ?disabled=${at === sizes.length - 1} @click=${() => to(at + 1)}>zoom in</button>
      <span class="small soft"
        >${
          size
            ? `${size} × ${size} fields; drag to pan, or move the cursor`
            : this.#long
              ? "all, by the largest of each field"
              : "all fields"
        }</span
      >
    </div>`;
  }

  #tile(of: string, size: number, go: (query: number, key: number) => void) {
    const source = this.#long ? this.#piece.value : this.#all.value,
      { here } = this.session,
      [down, across] = this.#corner;
    if (!source) return nothing;
    const [rows = 0, columns = 0] = source.shape.slice(-2);
    const place = size
      ? this.#follow(size, here.query - down, here.key - across, rows, columns)
      : { top: 0, left: 0, size: rows };
    const top = down + place.top,
      left = across + place.left,
      n = place.size;
    const data = cut(source.data, columns, place).map((x, i) =>
      this.session.causal && left + (i % n) > top + Math.floor(i / n) ? NaN : x,
    ); // what comes later is not seen
    return html`<h3>Queries ${top} to ${top + n - 1}, keys ${left} to ${left + n - 1}, number by number</h3>
      <div
        class="near"
        @pointerdown=${(event: PointerEvent) => this.#grab(event, place)}
        @pointermove=${(event: PointerEvent) => this.#drag(event, n, rows, columns)}
        @pointerup=${this.#drop}
        @pointercancel=${this.#drop}
        @click=${{ handleEvent: this.#click, capture: true }}
      >
        <gf-matrix
          class="piece"
          inner
          shares
          label="A piece of the attention of ${of}"
          most=${this.most}
          .data=${data}
          .rows=${n}
          .columns=${n}
          rowName="query"
          columnName="key"
          .row=${here.query - top}
          .column=${here.key - left}
          rowTone="var(--query)"
          columnTone="var(--key)"
          .rowLabel=${(i: number) => this.#name(top + i)}
          .columnLabel=${(i: number) => this.#name(left + i)}
          @pick=${({ detail }: CustomEvent<Pick>) => go(top + detail.row, left + detail.column)}
        ></gf-matrix>
      </div>`;
  }

  /** The piece in sight: it goes where the cursor goes, and stays where it was dragged until the cursor moves. */
  #follow(size: number, row: number, column: number, rows: number, columns: number): Piece {
    const cursor = `${this.#corner} ${row} ${column}`;
    if (this.#near?.size !== size || cursor !== this.#cursor)
      this.#near = follow(this.#near, size, row, column, rows, columns);
    this.#cursor = cursor;
    return this.#near;
  }

  #grab(event: PointerEvent, from: Piece): void {
    if (this.#size && event.button === 0) this.#dragged = { x: event.clientX, y: event.clientY, from, moved: false };
  }

  #drag(event: PointerEvent, n: number, rows: number, columns: number): void {
    const held = this.#dragged,
      box = this.renderRoot.querySelector(".near gf-matrix")?.getBoundingClientRect();
    if (!held || !box) return;
    const field = Math.min(box.width, this.most) / n,
      along = (by: number, start: number, size: number) =>
        Math.max(0, Math.min(size - n, start - Math.round(by / field)));
    const top = along(event.clientY - held.y, held.from.top, rows),
      left = along(event.clientX - held.x, held.from.left, columns);
    held.moved ||= top !== held.from.top || left !== held.from.left;
    if (!held.moved) return;
    this.#near = { top, left, size: n };
    this.requestUpdate();
  }

  #drop = (): void => {
    if (!this.#dragged?.moved) this.#dragged = null;
  };

  /** The click that ends a drag picks nothing. */
  #click = (event: Event): void => {
    if (this.#dragged?.moved) event.stopPropagation();
    this.#dragged = null;
  };
}
