/** Thumbnails of the heads of all blocks, sorted by a role score. */
import { css, html, nothing } from "lit";
import { customElement, property, state } from "lit/decorators.js";
import "../components/matrix.js";
import "../components/notice.js";
import { Resource } from "../resource.js";
import { num, percent } from "../lib/number.js";
import { unpackThumbnails } from "../lib/thumbnails.js";
import type { Grid, Roles } from "../api_types.js";
import { SessionElement } from "../view.js";

interface Thumbnails {
  grid: Grid;
  pictures: Float32Array[];
}

@customElement("gf-sorted-grid")
export class SortedGrid extends SessionElement {
  @property() by = "";
  @state() private grids: Thumbnails[] = [];
  #of = ""; // id of the trace of `grids`
  #roles = new Resource<Roles>(this, () => this.session.traceViewPath("roles", {}));

  static override styles = [
    SessionElement.styles,
    css`
      ol {
        display: grid;
        grid-template-columns: repeat(auto-fill, minmax(4.6rem, 1fr));
        gap: 0.5rem;
      }
      button {
        padding: 2px;
        border: 2px solid transparent;
        background: none;
        border-radius: 5px;
        width: 100%;
        font-size: 0.72rem;
        line-height: 1.5;
      }
      button[aria-pressed="true"] {
        border-color: var(--ink);
        background: none;
        color: inherit;
      }
    `,
  ];

  override willUpdate(): void {
    const { trace, anatomy } = this.session;
    if (!trace || !anatomy || this.#of === trace.id) return;
    const id = (this.#of = trace.id),
      paths = anatomy.layers.map((_, layer) => this.session.traceViewPath("grid", { layer, size: 48 }) as string);
    void Promise.all(paths.map((path) => this.session.fetch<Grid>(path))).then(
      (found) => {
        if (id === this.#of) this.grids = found.map((grid) => ({ grid, pictures: unpackThumbnails(grid) }));
      },
      () => (this.#of = ""),
    );
  }

  override render() {
    const { session } = this,
      { cursor } = session,
      roles = this.#roles.value,
      scores = roles?.scores[this.by];
    if (this.#roles.error) return html`<gf-notice heading="No scores" reason=${this.#roles.error.message}></gf-notice>`;
    if (!scores || !this.grids.length)
      return html`<p class="soft small" role="status">scoring all heads on this text …</p>`;
    const heads = scores
      .flatMap((row, layer) => row.map((score, head) => ({ layer, head, score: num(score) })))
      .filter((one) => this.grids[one.layer]?.pictures[one.head]);
    if (!heads.some((one) => Number.isFinite(one.score)))
      return html`<gf-notice
        heading="No scores"
        reason="No token of this text has a key with this relation, because no token occurs twice."
      ></gf-notice>`;
    heads.sort((a, b) => b.score - a.score);
    return html`<ol aria-label="Heads by score">
        ${heads.map(({ layer, head, score }) => {
          const { grid, pictures } = this.grids[layer] as Thumbnails;
          return html`<li>
            <button
              aria-pressed=${cursor.layer === layer && cursor.head === head}
              aria-label="${layer}.${head} ${percent(score)}: block ${layer}, head ${head}"
              @click=${() => session.navigate({ layer, head })}
            >
              <gf-matrix
                thumbnail
                fractions
                ?causal=${session.causal}
                .data=${pictures[head] ?? []}
                .rows=${grid.rows}
                .columns=${grid.columns}
                label="attention of block ${layer}, head ${head}"
              ></gf-matrix>
              <span class="num">${layer}.${head} ${percent(score)}</span>
            </button>
          </li>`;
        })}
      </ol>
      ${
        roles.receipt
          ? html`<p class="small soft">
              ${roles.meanings[this.by] ?? nothing}. Labels show block.head and score, computed by
              <code>${roles.receipt.python}</code>.
            </p>`
          : nothing
      }`;
  }
}
