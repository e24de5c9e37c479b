/** View 8. Every head of every block as a small picture, and one of them full size. */
import { css, html, nothing } from "lit";
import { customElement, property } from "lit/decorators.js";
import { look } from "../lib/look.js";
import "../parts/matrix.js";
import "../parts/pattern.js";
import "../parts/cause.js";
import "../parts/receipt.js";
import "../parts/refused.js";
import "../parts/where.js";
import "./grid_sorted.js";
import { TITLES } from "./roles.js";
import { Ask } from "../ask.js";
import type { Tensor } from "../lib/tensor.js";
import { unpack } from "../lib/thumbs.js";
import type { Pick } from "../parts/matrix.js";
import { visible } from "../parts/token.js";
import type { Grid } from "../shapes.js";
import { Follower } from "../view.js";

/** One block's row of thumbnails. */
@customElement("gf-grid-row")
export class GridRow extends Follower {
  @property({ type: Number }) layer = 0;
  #grid = new Ask<Grid>(this, () => this.session.ofTrace("grid", { layer: this.layer, size: 48 }));

  static override styles = [
    Follower.styles,
    css`
      .heads {
        display: grid;
        grid-template-columns: 1.8rem repeat(var(--n), minmax(2.2rem, 5.2rem));
        gap: 5px;
        align-items: center;
      }
      .heads > span {
        font-size: 0.76rem;
        color: var(--soft);
      }
      button {
        padding: 2px;
        border: 2px solid transparent;
        background: none;
        border-radius: 5px;
        line-height: 0;
        width: 100%;
      }
      button[aria-pressed="true"] {
        border-color: var(--ink);
        background: none;
      }
    `,
  ];

  #drawn: { of: Grid | null; pictures: Float32Array[] } = { of: null, pictures: [] };

  /** The same arrays as long as it is the same answer, so that nothing is drawn twice. */
  get pictures(): Float32Array[] {
    const grid = this.#grid.value;
    if (grid && grid !== this.#drawn.of) this.#drawn = { of: grid, pictures: unpack(grid) };
    return this.#drawn.pictures;
  }

  override render() {
    const grid = this.#grid.value,
      { here } = this.session;
    if (this.#grid.error)
      return html`<gf-refused heading="Block ${this.layer}" reason=${this.#grid.error.message}></gf-refused>`;
    if (!grid) return html`<div class="heads" ${look({ "--n": 1 })}><span>${this.layer}</span></div>`;
    return html`<div class="heads" ${look({ "--n": grid.heads })}>
      <span>${this.layer}</span>${this.pictures.map(
        (picture, head) =>
          html` <button
            aria-pressed=${here.layer === this.layer && here.head === head}
            aria-label="Block ${this.layer}, head ${head}"
            @click=${() => this.session.go({ layer: this.layer, head })}
          >
            <gf-matrix
              still
              shares
              ?causal=${this.session.causal}
              .data=${picture}
              .rows=${grid.rows}
              .columns=${grid.columns}
              label="attention of block ${this.layer}, head ${head}"
            ></gf-matrix>
          </button>`,
      )}
    </div>`;
  }
}

@customElement("gf-view-grid")
export class GridView extends Follower {
  static override styles = [
    Follower.styles,
    css`
      .title {
        display: flex;
        flex-wrap: wrap;
        gap: 0.4rem 1.4rem;
        align-items: baseline;
        justify-content: space-between;
      }
      .grid {
        display: grid;
        gap: 5px;
        overflow-x: auto;
        padding: 2px;
      }
    `,
  ];

  override render() {
    const { session } = this,
      { here, anatomy } = session,
      by = session.place.more["order"] ?? "",
      sorted = by in TITLES && !anatomy?.refused["roles"];
    return html`<section class="stack">
      <div class="title">
        <h2>Every head at once</h2>
        <gf-where .session=${session}></gf-where>
      </div>
      ${
        anatomy?.refused["roles"]
          ? nothing
          : html`<label class="small"
              >in the order of
              <select
                aria-label="Order of the heads"
                @change=${(event: Event) => session.more({ order: (event.target as HTMLSelectElement).value || null })}
              >
                <option value="">blocks</option>
                ${Object.entries(TITLES).map(
                  ([role, title]) => html`<option value=${role} .selected=${role === by}>${title}</option>`,
                )}
              </select></label
            >`
      }
      ${
        sorted
          ? html`<gf-grid-sorted .session=${session} by=${by}></gf-grid-sorted>`
          : html`<div class="grid" tabindex="0" role="group" aria-label="All heads">
              ${anatomy?.layers.map(
                (_, layer) => html`<gf-grid-row .session=${session} .layer=${layer}></gf-grid-row>`,
              )}
            </div>`
      }
      <h3>Block ${here.layer}, head ${here.head}</h3>
      <gf-pattern zooms .session=${session}></gf-pattern>
      <gf-cause
        .session=${session}
        label="Take this head out, and write anew"
        .edit=${{ op: "ablate", point: `blocks.${here.layer}.attn.z`, head: here.head }}
      ></gf-cause>
      <gf-pinned .session=${session}></gf-pinned>
    </section>`;
  }
}

/** One query's row in every head of the block, under each other. */
@customElement("gf-pinned")
export class Pinned extends Follower {
  #rows = new Ask<Tensor>(
    this,
    () =>
      this.session.tensor(`blocks.${this.session.here.layer}.attn.probs`, {
        slice: `:,${this.session.here.query},:`,
        dtype: "f32",
      }),
    "tensor",
  );

  override render() {
    const rows = this.#rows.value,
      { session } = this,
      { here } = session;
    if (this.#rows.error) return html`<gf-refused reason=${this.#rows.error.message}></gf-refused>`;
    if (!rows) return nothing;
    const [heads = 0, columns = 0] = rows.shape.slice(-2),
      data = rows.data.map((x, i) => (session.causal && i % columns > here.query ? NaN : x));
    return html`<div class="stack">
      <h3>Query ${here.query} in all heads of block ${here.layer}</h3>
      <gf-matrix
        shares
        most="720"
        rowHeight=${heads > 16 ? 12 : 20}
        .data=${data}
        .rows=${heads}
        .columns=${columns}
        .row=${here.head}
        .column=${here.key}
        rowName="head"
        columnName="key"
        columnTone="var(--key)"
        .columnLabel=${(i: number) => `${i} ${visible(session.tokens[i]?.text ?? "")}`}
        label="Query ${here.query} in all heads"
        @pick=${(event: CustomEvent<Pick>) => session.go({ head: event.detail.row, key: event.detail.column })}
      ></gf-matrix>
      <gf-receipt
        .of=${{
          python: `t.rows("blocks.${here.layer}.attn.probs", query=${here.query})`,
          identity: rows.identity,
          error: rows.error,
        }}
      ></gf-receipt>
    </div>`;
  }
}
