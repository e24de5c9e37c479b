/**
 * The attention of one head. Up to 256 tokens it is drawn number by number; a longer text as its largest values, field by
 * field (a mean would hide spikes), with a piece of it beside, number by number, around the cursor.
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

const WHOLE = 256, STEP = 128;

/** Where a piece of 256 begins that holds this place, so that small steps ask for nothing new. */
export const begin = (at: number, n: number): number => Math.max(0, Math.min(n - WHOLE, Math.floor((at - STEP / 2) / STEP) * STEP));

@customElement("gf-pattern")
export class Pattern extends Follower {
  @property({ type: Number }) most = 560;
  #all = new Ask<Tensor>(this, () => {
    const { layer, head } = this.session.here;
    return this.session.tensor(`blocks.${layer}.attn.probs`, { slice: `${head},:,:`, ...(this.#long ? { dtype: "u8", pool: WHOLE } : { dtype: "f32" }) });
  }, "tensor");
  #piece = new Ask<Tensor>(this, () => {
    const { layer, head } = this.session.here, [row, column] = this.#corner;
    return this.#long ? this.session.tensor(`blocks.${layer}.attn.probs`, { slice: `${head},${row}:${row + WHOLE},${column}:${column + WHOLE}`, dtype: "f32" }) : null;
  }, "tensor");

  static override styles = [Follower.styles, css`h3 { margin: 0.6rem 0 0.5rem; }`];

  get #long(): boolean {
    return this.session.tokens.length > WHOLE;
  }

  get #corner(): [number, number] {
    const { query, key } = this.session.here, n = this.session.tokens.length;
    return [begin(query, n), begin(key, n)];
  }

  get error(): string | null {
    return this.#all.error?.message ?? this.#piece.error?.message ?? null;
  }

  /** What was drawn, for its receipt. */
  get tensor(): Tensor | null {
    return this.#all.value;
  }

  #name = (i: number): string => `${i} ${visible(this.session.tokens[i]?.text ?? "")}`;

  override render() {
    const all = this.#all.value, { here } = this.session, of = `block ${here.layer}, head ${here.head}`;
    if (this.error) return html`<gf-refused reason=${this.error}></gf-refused>`;
    if (!all) return nothing;
    const [rows = 0, columns = 0] = all.shape.slice(-2), [high, wide] = all.pool ?? [1, 1];
    const names = (cells: number) => (i: number) => (cells === 1 ? this.#name(i) : `${i * cells} to ${(i + 1) * cells - 1}`);
    const go = (query: number, key: number) => this.session.go({ query, key });
    return html`<gf-matrix class="all" shares ?causal=${this.session.causal} label="Attention of ${of}" most=${this.most} .data=${all.data} .rows=${rows} .columns=${columns} rowName="query" columnName="key"
        .row=${Math.floor(here.query / (high ?? 1))} .column=${Math.floor(here.key / (wide ?? 1))} rowTone="var(--query)" columnTone="var(--key)"
        .rowLabel=${names(high ?? 1)} .columnLabel=${names(wide ?? 1)} note=${high === 1 ? "" : `the largest of ${high} × ${wide}`}
        @pick=${({ detail }: CustomEvent<Pick>) => go(detail.row * (high ?? 1), detail.column * (wide ?? 1))}></gf-matrix>
      ${this.#long ? this.#tile(of, go) : nothing}`;
  }

  #tile(of: string, go: (query: number, key: number) => void) {
    const piece = this.#piece.value, { here } = this.session, [top, left] = this.#corner;
    if (!piece) return nothing;
    const [rows = 0, columns = 0] = piece.shape.slice(-2);
    const data = piece.data.map((x, i) => (this.session.causal && left + (i % columns) > top + Math.floor(i / columns) ? NaN : x)); // what comes later is not seen
    return html`<h3>Queries ${top} to ${top + rows - 1}, keys ${left} to ${left + columns - 1}, number by number</h3>
      <gf-matrix class="piece" shares label="A piece of the attention of ${of}" most=${this.most} .data=${data} .rows=${rows} .columns=${columns} rowName="query" columnName="key"
        .row=${here.query - top} .column=${here.key - left} rowTone="var(--query)" columnTone="var(--key)" .rowLabel=${(i: number) => this.#name(top + i)} .columnLabel=${(i: number) => this.#name(left + i)}
        @pick=${({ detail }: CustomEvent<Pick>) => go(top + detail.row, left + detail.column)}></gf-matrix>`;
  }
}
