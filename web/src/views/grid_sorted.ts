/** Of view 8: the heads of all blocks in the order of a score, the best first. */
import { css, html, nothing } from "lit";
import { customElement, property, state } from "lit/decorators.js";
import "../parts/matrix.js";
import "../parts/refused.js";
import { Ask } from "../ask.js";
import { num, percent } from "../lib/number.js";
import { unpack } from "../lib/thumbs.js";
import type { Grid, Roles } from "../shapes.js";
import { Follower } from "../view.js";

interface Pictured {
  grid: Grid;
  pictures: Float32Array[];
}

@customElement("gf-grid-sorted")
export class SortedGrid extends Follower {
  @property() by = "";
  @state() private grids: Pictured[] = [];
  #of = ""; // the trace that they are of
  #roles = new Ask<Roles>(this, () => this.session.ofTrace("roles", {}));

  static override styles = [
    Follower.styles,
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
      paths = anatomy.layers.map((_, layer) => this.session.ofTrace("grid", { layer, size: 48 }) as string);
    void Promise.all(paths.map((path) => this.session.ask<Grid>(path))).then(
      (found) => {
        if (id === this.#of) this.grids = found.map((grid) => ({ grid, pictures: unpack(grid) }));
      },
      () => (this.#of = ""),
    );
  }

  override render() {
    const { session } = this,
      { here } = session,
      roles = this.#roles.value,
      scores = roles?.scores[this.by];
    if (this.#roles.error)
      return html`<gf-refused heading="No scores to sort by" reason=${this.#roles.error.message}></gf-refused>`;
    if (!scores || !this.grids.length)
      return html`<p class="soft small" role="status">measuring every head on this text …</p>`;
    const heads = scores
      .flatMap((row, layer) => row.map((score, head) => ({ layer, head, score: num(score) })))
      .filter((one) => this.grids[one.layer]?.pictures[one.head]);
    if (!heads.some((one) => Number.isFinite(one.score)))
      return html`<gf-refused
        heading="No scores to sort by"
        reason="No token of this text sees such a key: nothing in it stands twice."
      ></gf-refused>`;
    heads.sort((a, b) => b.score - a.score);
    return html`<ol aria-label="Heads by score">
        ${heads.map(({ layer, head, score }) => {
          const { grid, pictures } = this.grids[layer] as Pictured;
          return html`<li>
            <button
              aria-pressed=${here.layer === layer && here.head === head}
              aria-label="${layer}.${head} ${percent(score)}: block ${layer}, head ${head}"
              @click=${() => session.go({ layer, head })}
            >
              <gf-matrix
                still
                shares
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
              ${roles.meanings[this.by] ?? nothing}; block.head and score. From <code>${roles.receipt.python}</code>.
            </p>`
          : nothing
      }`;
  }
}
