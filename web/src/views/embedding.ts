/** View 3. A token's row of the embedding table, the rows nearest to it, and rows as points on a plane. */
import { css, html, nothing, svg } from "lit";
import { customElement } from "lit/decorators.js";
import "../parts/bars.js";
import "../parts/formula.js";
import "../parts/receipt.js";
import "../parts/refused.js";
import "../parts/strip.js";
import { Ask } from "../ask.js";
import { count, fixed, num, percent, short } from "../lib/number.js";
import { quoted, visible } from "../parts/token.js";
import type { Embedding, EmbeddingMap, Tokens } from "../shapes.js";
import { Follower } from "../view.js";

const WIDE = 640,
  HIGH = 380,
  EDGE = 34;

@customElement("gf-view-embedding")
export class EmbeddingView extends Follower {
  #one = new Ask<Embedding>(this, () =>
    this.session.ofModel("embedding", { token: this.#token, n: 12, table: this.#table }),
  );
  #two = new Ask<Embedding>(this, () =>
    this.#with === null ? null : this.session.ofModel("embedding", { token: this.#with, n: 1, table: this.#table }),
  );
  #map = new Ask<EmbeddingMap>(this, () => {
    const near = this.#one.value?.nearest.map((one) => one.id) ?? [];
    const ids = [...new Set([...this.#tokens.map((token) => token.id), ...near])];
    return ids.length < 3 ? null : this.session.ofModel("embedding_map", { tokens: ids.join(","), table: this.#table });
  });

  #twin = new Ask<Embedding>(this, () =>
    this.#one.value?.tied === false
      ? this.session.ofModel("embedding", {
          token: this.#token,
          n: 1,
          table: this.#table === "input" ? "output" : "input",
        })
      : null,
  );

  static override styles = [
    Follower.styles,
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
    const { here, place } = this.session,
      asked = Number(place.more["token"] ?? NaN);
    return Number.isInteger(asked) ? asked : (this.#tokens[this.#table === "source" ? here.key : here.query]?.id ?? 0);
  }

  /** The tokens that are looked up in the table: the text's, or its source's. */
  get #tokens(): { id: number; text: string }[] {
    return (this.#table === "source" && this.session.trace?.source?.tokens) || this.session.tokens;
  }

  /** A second token, to compare. */
  get #with(): number | null {
    const asked = this.session.place.more["with"];
    return asked === undefined || !Number.isInteger(Number(asked)) ? null : Number(asked);
  }

  get #table(): string {
    const asked = this.session.place.more["table"] ?? "";
    return ["source", "output"].includes(asked) ? asked : "input";
  }

  override render() {
    const one = this.#one.value,
      error = this.#one.error,
      { session } = this;
    return html`<section class="stack">
      <h2>The embedding table</h2>
      ${
        error
          ? html`<gf-refused reason=${error.message}></gf-refused>`
          : !one
            ? nothing
            : html` <p>
                  ${count(one.n_rows)} rows of ${one.row.length} numbers. ${quoted(one.token.text)} is row
                  ${one.token.id}, of length <span class="num">${short(one.token.value)}</span>.
                  ${
                    session.anatomy?.kind === "encoder"
                      ? nothing
                      : one.tied
                        ? "The head reads the same table at the end."
                        : "The head has a table of its own at the end."
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
                                session.more({
                                  table,
                                  ...([table, this.#table].includes("source") ? { token: null, with: null } : {}),
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
                ${this.#tables(one)} ${this.#pair(one)}
                <gf-receipt .of=${one.receipt}></gf-receipt>
                <div>
                  <h3>Nearest to it, by cosine</h3>
                  <gf-bars
                    tokens
                    pick
                    meaning="residual"
                    top="1"
                    label="Nearest rows by cosine"
                    .bars=${one.nearest.map((near) => ({
                      label: near.text,
                      value: near.value,
                      text: fixed(near.value),
                    }))}
                    @pick=${(event: CustomEvent<number>) =>
                      session.more({ token: String(one.nearest[event.detail]?.id ?? 0) })}
                  ></gf-bars>
                </div>`
      }
      ${this.#plane()}
    </section>`;
  }

  /** The same token's row in the other table, where there are two. */
  #tables(one: Embedding) {
    const twin = this.#twin.value,
      other = this.#table === "input" ? "output" : "input";
    if (one.tied || !twin || twin.token.id !== one.token.id) return nothing;
    return html`<gf-strip .data=${twin.row} meaning="residual" label="its row in the ${other} table"
        >its row in the ${other} table, of length ${short(twin.token.value)}</gf-strip
      >
      <p class="small">
        The two point apart: cosine <span class="num">${fixed(cosine(one, twin))}</span>. One is what the model reads
        for the token, the other what it holds the stream against to write it.
      </p>`;
  }

  #find = async (event: Event): Promise<void> => {
    const input = event.target as HTMLInputElement,
      { session } = this;
    if (!input.value) return;
    const { tokens } = await session.ask<Tokens>(session.ofModel("tokens", { text: input.value }));
    const first = tokens.find((token) => !token.special);
    if (first) session.more({ token: String(first.id) });
  };

  #pair(one: Embedding) {
    const { session } = this,
      two = this.#two.value,
      choices = new Map([
        ...this.#tokens.map((token): [number, string] => [token.id, token.text]),
        ...one.nearest.map((near): [number, string] => [near.id, near.text]),
      ]);
    choices.delete(one.token.id);
    const dot = two ? cosine(one, two) * num(one.token.value) * num(two.token.value) : 0;
    return html`<div class="row small">
        ${
          session.live
            ? html`<label
                >token of the text
                <input
                  aria-label="Token to look up, by its text"
                  spellcheck="false"
                  size="8"
                  placeholder="Quito"
                  @change=${this.#find}
              /></label>`
            : nothing
        }<label
          >beside it
          <select
            aria-label="A second token"
            @change=${(event: Event) => session.more({ with: (event.target as HTMLSelectElement).value || null })}
          >
            <option value="">none</option>
            ${[...choices].map(
              ([id, text]) => html`<option value=${id} .selected=${id === this.#with}>${visible(text)}</option>`,
            )}
          </select></label
        >
      </div>
      ${
        this.#with !== null && this.#two.error
          ? html`<gf-refused reason=${this.#two.error.message}></gf-refused>`
          : nothing
      }
      ${
        this.#with !== null && two
          ? html`<gf-strip .data=${two.row} meaning="residual" label="row ${two.token.id}"
                >row ${two.token.id}, ${visible(two.token.text)}</gf-strip
              >
              <gf-formula
                >cosine = ${short(dot)} / (${short(one.token.value)} × ${short(two.token.value)}) =
                <b>${fixed(cosine(one, two))}</b></gf-formula
              >`
          : nothing
      }`;
  }

  #plane() {
    const map = this.#map.value,
      near = new Set(this.#one.value?.nearest.map((one) => one.id));
    if (this.#map.error) return html`<gf-refused heading="No plane" reason=${this.#map.error.message}></gf-refused>`;
    if (!map) return nothing;
    const xs = map.places.map((p) => num(p.x)),
      ys = map.places.map((p) => num(p.y));
    const along = (x: number, all: number[], size: number) =>
      EDGE + ((x - Math.min(...all)) / Math.max(1e-9, Math.max(...all) - Math.min(...all))) * (size - 2 * EDGE);
    const spots = map.places.map((place) => ({
      place,
      x: along(num(place.x), xs, WIDE),
      y: HIGH - along(num(place.y), ys, HIGH),
      here: place.id === this.#token,
      near: near.has(place.id),
    }));
    spots.sort((a, b) => Number(b.here) - Number(a.here) || Number(b.near) - Number(a.near));
    const taken: { left: number; right: number; y: number }[] = [];
    const free = (text: string, x: number, y: number): boolean => {
      const wide = 7.2 * text.length + 8,
        left = x > WIDE - 90 ? x - 6 - wide : x + 4,
        box = { left, right: left + wide, y };
      if (taken.some((one) => box.left < one.right && box.right > one.left && Math.abs(box.y - one.y) < 13))
        return false;
      taken.push(box);
      return true;
    };
    return html`<div class="stack close">
      <h3>This text's tokens and those neighbours, on the plane on which they differ most</h3>
      <svg viewBox="0 0 ${WIDE} ${HIGH}" role="group" aria-label="Tokens on a plane">
        ${spots.map(({ place, x, y, here, near: beside }) => {
          const named = free(visible(place.text), x, y),
            open = () => this.session.more({ token: String(place.id) });
          return svg`<g class=${
            here ? "here" : beside ? "near" : "dim"
          } role="button" tabindex="0" aria-label=${`token ${place.text}`} @click=${open}
          @keydown=${(event: KeyboardEvent) => {
            if (event.key === "Enter") open();
          }}><circle cx=${x} cy=${y} r=${here ? 5 : 3}><title>${visible(place.text)}</title></circle>
          <text visibility=${named ? "visible" : "hidden"} x=${x + 6} y=${y + 4} text-anchor=${
            x > WIDE - 90 ? "end" : "start"
          } dx=${x > WIDE - 90 ? -12 : 0}>${visible(place.text)}</text></g>`;
        })}
      </svg>
      <p class="small soft">
        Across: ${percent(map.explained[0])} of their variance, up: ${percent(map.explained[1])}. What the plane does
        not show is the rest, ${percent(1 - map.explained[0] - map.explained[1])}.
      </p>
      <gf-receipt .of=${map.receipt}></gf-receipt>
    </div>`;
  }
}

function cosine(a: Embedding, b: Embedding): number {
  const dot = a.row.reduce((sum: number, x, i) => sum + num(x) * num(b.row[i] ?? 0), 0);
  return dot / (num(a.token.value) * num(b.token.value));
}
