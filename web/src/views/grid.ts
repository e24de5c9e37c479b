/** All heads view: attention thumbnails of every head, and one head at full size. */
import { css, html, nothing } from "lit";
import { customElement, property } from "lit/decorators.js";
import { setStyle } from "../lib/set_style.js";
import "../components/matrix.js";
import "../components/pattern.js";
import "../components/causal_test.js";
import "../components/receipt.js";
import "../components/notice.js";
import "../components/head_picker.js";
import "./sorted_grid.js";
import { TITLES } from "./roles.js";
import { Resource } from "../resource.js";
import type { Tensor } from "../lib/tensor.js";
import { unpackThumbnails } from "../lib/thumbnails.js";
import type { Pick } from "../components/matrix.js";
import { visibleText } from "../components/token.js";
import type { Grid } from "../api_types.js";
import { SessionElement } from "../view.js";

/** The thumbnails of one block. */
@customElement("gf-grid-row")
export class GridRow extends SessionElement {
  @property({ type: Number }) layer = 0;
  #grid = new Resource<Grid>(this, () => this.session.traceViewPath("grid", { layer: this.layer, size: 48 }));

  static override styles = [
    SessionElement.styles,
    css`
      .heads {
        display: grid;
        grid-template-columns: 1.8rem repeat(var(--n), minmax(2.2rem, 7rem));
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

  /** The cached arrays of the current response, so that unchanged thumbnails are not redrawn. */
  get pictures(): Float32Array[] {
    const grid = this.#grid.value;
    if (grid && grid !== this.#drawn.of) this.#drawn = { of: grid, pictures: unpackThumbnails(grid) };
    return this.#drawn.pictures;
  }

  override render() {
    const grid = this.#grid.value,
      { cursor } = this.session;
    if (this.#grid.error)
      return html`<gf-notice heading="Block ${this.layer}" reason=${this.#grid.error.message}></gf-notice>`;
    if (!grid) return html`<div class="heads" ${setStyle({ "--n": 1 })}><span>${this.layer}</span></div>`;
    return html`<div class="heads" ${setStyle({ "--n": grid.heads })}>
      <span>${this.layer}</span>${this.pictures.map(
        (picture, head) =>
          html` <button
            aria-pressed=${cursor.layer === this.layer && cursor.head === head}
            aria-label="Block ${this.layer}, head ${head}"
            @click=${() => this.session.navigate({ layer: this.layer, head })}
          >
            <gf-matrix
              thumbnail
              fractions
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
export class GridView extends SessionElement {
  static override styles = [
    SessionElement.styles,
    css`
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
      { cursor, anatomy } = session,
      by = session.address.options["sort_heads"] ?? "",
      sorted = by in TITLES && !anatomy?.unavailable["roles"];
    return html`<section class="stack">
      <div class="title">
        <h2>All attention heads</h2>
        <gf-head-picker .session=${session}></gf-head-picker>
      </div>
      ${
        anatomy?.unavailable["roles"]
          ? nothing
          : html`<label class="small"
              >sort by
              <select
                aria-label="Order of the heads"
                @change=${(event: Event) =>
                  session.setOptions({ sort_heads: (event.target as HTMLSelectElement).value || null })}
              >
                <option value="">block</option>
                ${Object.entries(TITLES).map(
                  ([role, title]) => html`<option value=${role} .selected=${role === by}>${title}</option>`,
                )}
              </select></label
            >`
      }
      ${
        sorted
          ? html`<gf-sorted-grid .session=${session} by=${by}></gf-sorted-grid>`
          : html`<div class="grid" tabindex="0" role="group" aria-label="All heads">
              ${anatomy?.layers.map(
                (_, layer) => html`<gf-grid-row .session=${session} .layer=${layer}></gf-grid-row>`,
              )}
            </div>`
      }
      <h3>Block ${cursor.layer}, head ${cursor.head}</h3>
      <gf-pattern zoomable .session=${session}></gf-pattern>
      <gf-causal-test
        .session=${session}
        label="Ablate head ${cursor.head} of block ${cursor.layer}"
        .edit=${{ op: "ablate", point: `blocks.${cursor.layer}.attn.z`, head: cursor.head }}
      ></gf-causal-test>
      <gf-query-heads .session=${session}></gf-query-heads>
    </section>`;
  }
}

/** The attention weights of one query in all heads of a block. */
@customElement("gf-query-heads")
export class QueryInAllHeads extends SessionElement {
  #rows = new Resource<Tensor>(
    this,
    () =>
      this.session.tensorPath(`blocks.${this.session.cursor.layer}.attn.probs`, {
        slice: `:,${this.session.cursor.query},:`,
        dtype: "f32",
      }),
    "tensor",
  );

  override render() {
    const rows = this.#rows.value,
      { session } = this,
      { cursor } = session;
    if (this.#rows.error) return html`<gf-notice reason=${this.#rows.error.message}></gf-notice>`;
    if (!rows) return nothing;
    const [heads = 0, columns = 0] = rows.shape.slice(-2),
      data = rows.data.map((x, i) => (session.causal && i % columns > cursor.query ? NaN : x));
    return html`<div class="stack">
      <h3>Query ${cursor.query} in all heads of block ${cursor.layer}</h3>
      <gf-matrix
        fractions
        maxWidth="720"
        rowHeight=${heads > 16 ? 12 : 20}
        .data=${data}
        .rows=${heads}
        .columns=${columns}
        .row=${cursor.head}
        .column=${cursor.key}
        rowName="head"
        columnName="key"
        columnTone="var(--key)"
        .columnLabel=${(i: number) => `${i} ${visibleText(session.tokens[i]?.text ?? "")}`}
        label="Query ${cursor.query} in all heads"
        @pick=${(event: CustomEvent<Pick>) => session.navigate({ head: event.detail.row, key: event.detail.column })}
      ></gf-matrix>
      <gf-receipt
        .of=${{
          python: `t.rows("blocks.${cursor.layer}.attn.probs", query=${cursor.query})`,
          identity: rows.identity,
          error: rows.error,
        }}
      ></gf-receipt>
    </div>`;
  }
}
