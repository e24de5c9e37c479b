/**
 * Attention pattern of one head. Patterns of more than 256 tokens are max-pooled (a mean would hide single large
 * weights), and a second heat map shows a tile around the cursor at full resolution. Zooming in shows a smaller tile.
 */
import { css, html, nothing } from "lit";
import { customElement, property } from "lit/decorators.js";
import "./matrix.js";
import "./notice.js";
import { Resource } from "../resource.js";
import { num } from "../lib/number.js";
import type { Tensor } from "../lib/tensor.js";
import { SessionElement } from "../view.js";
import type { Pick } from "./matrix.js";
import { visibleText } from "./token.js";
import { tileValues, tileAround, TILE_SIZES, type Tile } from "./tile.js";

const TILE = 256,
  STEP = 128;

/** Return the start of a tile of 256 that contains a position, rounded so that small steps need no new request. */
export const tileStart = (at: number, n: number): number =>
  Math.max(0, Math.min(n - TILE, Math.floor((at - STEP / 2) / STEP) * STEP));

@customElement("gf-pattern")
export class Pattern extends SessionElement {
  @property({ type: Number }) maxWidth = 560;
  @property({ type: Boolean }) zoomable = false; // show zoom buttons
  #visibleTile: Tile | null = null; // visible tile
  #cursor = ""; // cursor of the visible tile
  #dragged: { x: number; y: number; from: Tile; moved: boolean } | null = null;
  #overview = new Resource<Tensor>(
    this,
    () => {
      const { layer, head } = this.session.cursor;
      return this.session.tensorPath(`blocks.${layer}.attn.probs`, {
        slice: `${head},:,:`,
        // A report holds 8-bit values of long texts, to be four times smaller.
        ...(this.#long ? { dtype: this.session.live ? "f32" : "u8", pool: TILE } : { dtype: "f32" }),
      });
    },
    "tensor",
  );
  #tileData = new Resource<Tensor>(
    this,
    () => {
      const { layer, head } = this.session.cursor,
        [row, column] = this.#tileOrigin;
      return this.#long
        ? this.session.tensorPath(`blocks.${layer}.attn.probs`, {
            slice: `${head},${row}:${row + TILE},${column}:${column + TILE}`,
            dtype: "f32",
          })
        : null;
    },
    "tensor",
  );

  static override styles = [
    SessionElement.styles,
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
    return this.session.tokens.length > TILE;
  }

  get #tileOrigin(): [number, number] {
    const { query, key } = this.session.cursor,
      n = this.session.tokens.length;
    return this.#long ? [tileStart(query, n), tileStart(key, n)] : [0, 0];
  }

  get error(): string | null {
    return this.#overview.error?.message ?? this.#tileData.error?.message ?? null;
  }

  /** The tensor of the overview. */
  get tensor(): Tensor | null {
    return this.#overview.value;
  }

  /** Cells along a side of the zoomed tile; 0: not zoomed. */
  get #size(): number {
    const asked = Number(this.session.address.options["zoom"] ?? 0),
      there = Math.min(TILE, this.session.tokens.length);
    return this.zoomable && TILE_SIZES.some((size) => size === asked) && asked < there ? asked : 0;
  }

  #name = (i: number): string => `${i} ${visibleText(this.session.tokens[i]?.text ?? "")}`;

  override render() {
    const all = this.#overview.value,
      { cursor } = this.session,
      title = `block ${cursor.layer}, head ${cursor.head}`;
    if (this.error) return html`<gf-notice reason=${this.error}></gf-notice>`;
    if (!all) return nothing;
    const [rows = 0, columns = 0] = all.shape.slice(-2),
      [poolRows, poolColumns] = all.pool ?? [1, 1],
      size = this.#size;
    const names = (cells: number) => (i: number) =>
      cells === 1 ? this.#name(i) : `${i * cells} to ${(i + 1) * cells - 1}`;
    const within = (i: number) => Math.min(this.session.tokens.length - 1, Math.max(0, i));
    const go = (query: number, key: number) => this.session.navigate({ query: within(query), key: within(key) });
    const overview = html`<gf-matrix
      class="all"
      fractions
      ?causal=${this.session.causal}
      label="Attention of ${title}"
      maxWidth=${this.maxWidth}
      .data=${all.data}
      .rows=${rows}
      .columns=${columns}
      rowName="query"
      columnName="key"
      .row=${Math.floor(cursor.query / (poolRows ?? 1))}
      .column=${Math.floor(cursor.key / (poolColumns ?? 1))}
      rowTone="var(--query)"
      columnTone="var(--key)"
      .rowLabel=${names(poolRows ?? 1)}
      .columnLabel=${names(poolColumns ?? 1)}
      .bound=${num(all.bound ?? 0)}
      note=${poolRows === 1 ? "" : `maximum of ${poolRows} × ${poolColumns} cells`}
      @pick=${({ detail }: CustomEvent<Pick>) => go(detail.row * (poolRows ?? 1), detail.column * (poolColumns ?? 1))}
    ></gf-matrix>`;
    return html`${this.zoomable ? this.#zoomButtons(size) : nothing}${size && !this.#long ? nothing : overview}${
      size || this.#long ? this.#tile(title, size, go) : nothing
    }`;
  }

  #zoomButtons(size: number) {
    const there = Math.min(TILE, this.session.tokens.length),
      sizes = [0, ...TILE_SIZES.filter((one) => one < there)],
      at = Math.max(0, sizes.indexOf(size));
    const to = (i: number) => this.session.setOptions({ zoom: sizes[i] ? String(sizes[i]) : null });
    return html`<div class="row" role="group" aria-label="Zoom">
      <button ?disabled=${at === 0} @click=${() => to(at - 1)}>zoom out</button
      ><button ?disabled=${at === sizes.length - 1} @click=${() => to(at + 1)}>zoom in</button>
      <span class="small soft"
        >${
          size
            ? `${size} × ${size} cells; drag or move the cursor to pan`
            : this.#long
              ? "all tokens, max-pooled"
              : "all cells"
        }</span
      >
    </div>`;
  }

  #tile(title: string, size: number, go: (query: number, key: number) => void) {
    const source = this.#long ? this.#tileData.value : this.#overview.value,
      { cursor } = this.session,
      [down, across] = this.#tileOrigin;
    if (!source) return nothing;
    const [rows = 0, columns = 0] = source.shape.slice(-2);
    const tile = size
      ? this.#follow(size, cursor.query - down, cursor.key - across, rows, columns)
      : { top: 0, left: 0, size: rows };
    const top = down + tile.top,
      left = across + tile.left,
      n = tile.size;
    const data = tileValues(source.data, columns, tile).map((x, i) =>
      this.session.causal && left + (i % n) > top + Math.floor(i / n) ? NaN : x,
    ); // later keys are masked
    return html`<h3>Queries ${top} to ${top + n - 1}, keys ${left} to ${left + n - 1}, full resolution</h3>
      <div
        class="near"
        @pointerdown=${(event: PointerEvent) => this.#grab(event, tile)}
        @pointermove=${(event: PointerEvent) => this.#drag(event, n, rows, columns)}
        @pointerup=${this.#drop}
        @pointercancel=${this.#drop}
        @click=${{ handleEvent: this.#click, capture: true }}
      >
        <gf-matrix
          class="piece"
          tile
          fractions
          label="Tile of the attention of ${title}"
          maxWidth=${this.maxWidth}
          .data=${data}
          .rows=${n}
          .columns=${n}
          rowName="query"
          columnName="key"
          .row=${cursor.query - top}
          .column=${cursor.key - left}
          rowTone="var(--query)"
          columnTone="var(--key)"
          .rowLabel=${(i: number) => this.#name(top + i)}
          .columnLabel=${(i: number) => this.#name(left + i)}
          @pick=${({ detail }: CustomEvent<Pick>) => go(top + detail.row, left + detail.column)}
        ></gf-matrix>
      </div>`;
  }

  /** Return the visible tile: it follows the cursor, and stays where it was dragged until the cursor moves. */
  #follow(size: number, row: number, column: number, rows: number, columns: number): Tile {
    const cursor = `${this.#tileOrigin} ${row} ${column}`;
    if (this.#visibleTile?.size !== size || cursor !== this.#cursor)
      this.#visibleTile = tileAround(this.#visibleTile, size, row, column, rows, columns);
    this.#cursor = cursor;
    return this.#visibleTile;
  }

  #grab(event: PointerEvent, from: Tile): void {
    if (this.#size && event.button === 0) this.#dragged = { x: event.clientX, y: event.clientY, from, moved: false };
  }

  #drag(event: PointerEvent, n: number, rows: number, columns: number): void {
    const drag = this.#dragged,
      box = this.renderRoot.querySelector(".near gf-matrix")?.getBoundingClientRect();
    if (!drag || !box) return;
    const field = Math.min(box.width, this.maxWidth) / n,
      along = (by: number, start: number, size: number) =>
        Math.max(0, Math.min(size - n, start - Math.round(by / field)));
    const top = along(event.clientY - drag.y, drag.from.top, rows),
      left = along(event.clientX - drag.x, drag.from.left, columns);
    drag.moved ||= top !== drag.from.top || left !== drag.from.left;
    if (!drag.moved) return;
    this.#visibleTile = { top, left, size: n };
    this.requestUpdate();
  }

  #drop = (): void => {
    if (!this.#dragged?.moved) this.#dragged = null;
  };

  /** Suppress the click at the end of a drag. */
  #click = (event: Event): void => {
    if (this.#dragged?.moved) event.stopPropagation();
    this.#dragged = null;
  };
}
