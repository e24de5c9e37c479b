/** Embedding view: the embedding of a token, its nearest neighbours, and a projection onto two dimensions. */
import { css, html, nothing, svg } from "lit";
import { customElement } from "lit/decorators.js";
import "../components/bars.js";
import "../components/formula.js";
import "../components/receipt.js";
import "../components/notice.js";
import "../components/strip.js";
import { Resource } from "../resource.js";
import { count, fixed, num, percent, short } from "../lib/number.js";
import { inlineToken, visibleText } from "../components/token.js";
import type { Embedding, EmbeddingMap, Tokens } from "../api_types.js";
import { SessionElement } from "../view.js";

const WIDE = 640,
  HIGH = 380,
  EDGE = 34;

@customElement("gf-view-embedding")
export class EmbeddingView extends SessionElement {
  #embedding = new Resource<Embedding>(this, () =>
    this.session.modelViewPath("embedding", { token: this.#token, n: 12, table: this.#table }),
  );
  #embedding2 = new Resource<Embedding>(this, () =>
    this.#token2 === null
      ? null
      : this.session.modelViewPath("embedding", { token: this.#token2, n: 1, table: this.#table }),
  );
  #map = new Resource<EmbeddingMap>(this, () => {
    const neighbours = this.#embedding.value?.nearest.map((one) => one.id) ?? [];
    const ids = [...new Set([...this.#tokens.map((token) => token.id), ...neighbours])];
    return ids.length < 3
      ? null
      : this.session.modelViewPath("embedding_map", { tokens: ids.join(","), table: this.#table });
  });

  #otherTable = new Resource<Embedding>(this, () =>
    this.#embedding.value?.tied === false
      ? this.session.modelViewPath("embedding", {
          token: this.#token,
          n: 1,
          table: this.#table === "input" ? "output" : "input",
        })
      : null,
  );

  static override styles = [
    SessionElement.styles,
    css`
      .two {
        display: grid;
        grid-template-columns: minmax(0, 1fr) minmax(0, 1fr);
        gap: 1.75rem;
      }
      svg {
        width: 100%;
        height: auto;
        display: block;
        background: var(--card);
        border: 1px solid var(--line);
        border-radius: 10px;
      }
      text {
        font: 11.5px var(--mono);
        fill: var(--ink);
      }
      .dim text {
        fill: var(--soft);
      }
      circle {
        fill: var(--soft);
      }
      .here circle {
        fill: var(--residual);
      }
      .here text {
        font-weight: 700;
        fill: var(--residual);
      }
      .near circle {
        fill: var(--residual);
      }
      g[role="button"] {
        cursor: pointer;
      }
      line {
        stroke: var(--line);
      }
      @media (max-width: 720px) {
        .two {
          grid-template-columns: 1fr;
        }
      }
    `,
  ];

  get #token(): number {
    const { cursor, address } = this.session,
      option = Number(address.options["token"] ?? NaN);
    return Number.isInteger(option)
      ? option
      : (this.#tokens[this.#table === "source" ? cursor.key : cursor.query]?.id ?? 0);
  }

  /** The tokens of the text, or of the source for the source table. */
  get #tokens(): { id: number; text: string }[] {
    return (this.#table === "source" && this.session.trace?.source?.tokens) || this.session.tokens;
  }

  /** The id of a second token for comparison, or null. */
  get #token2(): number | null {
    const option = this.session.address.options["token2"];
    return option === undefined || !Number.isInteger(Number(option)) ? null : Number(option);
  }

  get #table(): string {
    const option = this.session.address.options["table"] ?? "";
    return ["source", "output"].includes(option) ? option : "input";
  }

  override render() {
    const one = this.#embedding.value,
      error = this.#embedding.error,
      { session } = this;
    return html`<section class="stack">
      <h2>The embedding table</h2>
      ${
        error
          ? html`<gf-notice reason=${error.message}></gf-notice>`
          : !one
            ? nothing
            : html` <p>
                  The table has ${count(one.n_rows)} rows of ${one.row.length} values. ${inlineToken(one.token.text)} is
                  row ${one.token.id}, with norm <span class="num">${short(one.token.value)}</span>.
                  ${
                    session.anatomy?.kind === "encoder"
                      ? nothing
                      : one.tied
                        ? "The LM head uses the same table (tied)."
                        : "The LM head has its own table (untied)."
                  }
                </p>
                ${
                  one.tables.length < 2
                    ? nothing
                    : html`<div class="row">
                        ${one.tables.map(
                          (table) =>
                            html`<button
                              aria-pressed=${table === this.#table}
                              @click=${() =>
                                session.setOptions({
                                  table,
                                  ...([table, this.#table].includes("source") ? { token: null, token2: null } : {}),
                                })}
                            >
                              ${table} table
                            </button>`,
                        )}
                      </div>`
                }
                <gf-strip .data=${one.row} meaning="residual" .at=${-1} label="row ${one.token.id}"
                  >row ${one.token.id}</gf-strip
                >
                ${this.#untiedRow(one)} ${this.#comparison(one)}
                <gf-receipt .of=${one.receipt}></gf-receipt>
                <div>
                  <h3>Nearest neighbours by cosine similarity</h3>
                  <gf-bars
                    tokens
                    pick
                    meaning="residual"
                    top="1"
                    label="Nearest neighbours by cosine similarity"
                    .bars=${one.nearest.map((neighbours) => ({
                      label: neighbours.text,
                      value: neighbours.value,
                      text: fixed(neighbours.value),
                    }))}
                    @pick=${(event: CustomEvent<number>) =>
                      session.setOptions({ token: String(one.nearest[event.detail]?.id ?? 0) })}
                  ></gf-bars>
                </div>`
      }
      ${this.#projection()}
    </section>`;
  }

  /** The row of the same token in the other table, if the tables are untied. */
  #untiedRow(one: Embedding) {
    const twin = this.#otherTable.value,
      other = this.#table === "input" ? "output" : "input";
    if (one.tied || !twin || twin.token.id !== one.token.id) return nothing;
    return html`<gf-strip .data=${twin.row} meaning="residual" label="row in the ${other} table"
        >row in the ${other} table, norm ${short(twin.token.value)}</gf-strip
      >
      <p class="small">
        Cosine similarity of the two rows: <span class="num">${fixed(cosine(one, twin))}</span>. The input row
        represents the token as input; the output row scores it as the next token.
      </p>`;
  }

  #find = async (event: Event): Promise<void> => {
    const input = event.target as HTMLInputElement,
      { session } = this;
    if (!input.value) return;
    const { tokens } = await session.fetch<Tokens>(session.modelViewPath("tokens", { text: input.value }));
    const first = tokens.find((token) => !token.special);
    if (first) session.setOptions({ token: String(first.id) });
  };

  #comparison(one: Embedding) {
    const { session } = this,
      two = this.#embedding2.value,
      choices = new Map([
        ...this.#tokens.map((token): [number, string] => [token.id, token.text]),
        ...one.nearest.map((neighbours): [number, string] => [neighbours.id, neighbours.text]),
      ]);
    choices.delete(one.token.id);
    const dot = two ? cosine(one, two) * num(one.token.value) * num(two.token.value) : 0;
    return html`<div class="row small">
        ${
          session.live
            ? html`<label
                >token
                <input
                  aria-label="Token to look up, by its text"
                  spellcheck="false"
                  size="8"
                  placeholder="Quito"
                  @change=${this.#find}
              /></label>`
            : nothing
        }<label
          >compare with
          <select
            aria-label="Second token"
            @change=${(event: Event) =>
              session.setOptions({ token2: (event.target as HTMLSelectElement).value || null })}
          >
            <option value="">none</option>
            ${[...choices].map(
              ([id, text]) => html`<option value=${id} .selected=${id === this.#token2}>${visibleText(text)}</option>`,
            )}
          </select></label
        >
      </div>
      ${
        this.#token2 !== null && this.#embedding2.error
          ? html`<gf-notice reason=${this.#embedding2.error.message}></gf-notice>`
          : nothing
      }
      ${
        this.#token2 !== null && two
          ? html`<gf-strip .data=${two.row} meaning="residual" label="row ${two.token.id}"
                >row ${two.token.id}, ${visibleText(two.token.text)}</gf-strip
              >
              <gf-formula
                >cosine = ${short(dot)} / (${short(one.token.value)} × ${short(two.token.value)}) =
                <b>${fixed(cosine(one, two))}</b></gf-formula
              >`
          : nothing
      }`;
  }

  #projection() {
    const map = this.#map.value,
      neighbours = new Set(this.#embedding.value?.nearest.map((one) => one.id));
    if (this.#map.error)
      return html`<gf-notice heading="Projection not available" reason=${this.#map.error.message}></gf-notice>`;
    if (!map) return nothing;
    const xs = map.points.map((p) => num(p.x)),
      ys = map.points.map((p) => num(p.y));
    const along = (x: number, all: number[], size: number) =>
      EDGE + ((x - Math.min(...all)) / Math.max(1e-9, Math.max(...all) - Math.min(...all))) * (size - 2 * EDGE);
    const points = map.points.map((point) => ({
      point,
      x: along(num(point.x), xs, WIDE),
      y: HIGH - along(num(point.y), ys, HIGH),
      here: point.id === this.#token,
      neighbours: neighbours.has(point.id),
    }));
    points.sort((a, b) => Number(b.here) - Number(a.here) || Number(b.neighbours) - Number(a.neighbours));
    const taken: { left: number; right: number; y: number }[] = [];
    const free = (text: string, x: number, y: number): boolean => {
      const width = 7.2 * text.length + 8,
        left = x > WIDE - 90 ? x - 6 - width : x + 4,
        box = { left, right: left + width, y };
      if (taken.some((one) => box.left < one.right && box.right > one.left && Math.abs(box.y - one.y) < 13))
        return false;
      taken.push(box);
      return true;
    };
    return html`<div class="stack close">
      <h3>Principal components of the tokens of this text and their neighbours</h3>
      <svg viewBox="0 0 ${WIDE} ${HIGH}" role="group" aria-label="Two-dimensional projection of embeddings">
        ${points.map(({ point, x, y, here, neighbours: isNeighbour }) => {
          const named = free(visibleText(point.text), x, y),
            open = () => this.session.setOptions({ token: String(point.id) });
          return svg`<g class=${
            here ? "here" : isNeighbour ? "near" : "dim"
          } role="button" tabindex="0" aria-label=${`token ${point.text}`} @click=${open}
          @keydown=${(event: KeyboardEvent) => {
            if (event.key === "Enter") open();
          }}><circle cx=${x} cy=${y} r=${here ? 5 : 3}><title>${visibleText(point.text)}</title></circle>
          <text visibility=${named ? "visible" : "hidden"} x=${x + 6} y=${y + 4} text-anchor=${
            x > WIDE - 90 ? "end" : "start"
          } dx=${x > WIDE - 90 ? -12 : 0}>${visibleText(point.text)}</text></g>`;
        })}
      </svg>
      <p class="small soft">
        Explained variance: horizontal ${percent(map.explained[0])}, vertical ${percent(map.explained[1])}. The
        remaining ${percent(1 - map.explained[0] - map.explained[1])} are not shown.
      </p>
      <gf-receipt .of=${map.receipt}></gf-receipt>
    </div>`;
  }
}

function cosine(a: Embedding, b: Embedding): number {
  const dot = a.row.reduce((sum: number, x, i) => sum + num(x) * num(b.row[i] ?? 0), 0);
  return dot / (num(a.token.value) * num(b.token.value));
}
