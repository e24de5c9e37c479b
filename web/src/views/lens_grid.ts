/** Of view 11: the likeliest next token at every block, for the tokens around the one looked at; row by row as they come. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "../parts/receipt.js";
import "../parts/refused.js";
import { css as rgb, currentScheme, readable, shareColour } from "../lib/colour.js";
import { look } from "../lib/look.js";
import { num, percent } from "../lib/number.js";
import { onScheme } from "../parts/scheme.js";
import { visible } from "../parts/token.js";
import { Rows } from "../rows.js";
import type { Lens, LensRow, Likely, Receipt, TraceInfo } from "../shapes.js";
import { Follower } from "../view.js";

const around = (): number => (innerWidth < 720 ? 2 : 4); // tokens on either side
const TOP = 5;

/** What has come of a trace: for each token its rows, and the receipts of those that are whole. */
interface Come {
  rows: Map<number, Likely[][]>;
  whole: Map<number, Receipt>;
}
const come = new WeakMap<TraceInfo, Come>();

@customElement("gf-lens-grid")
export class LensGrid extends Follower {
  #asked: number[] = []; // tokens, in the order in which a row has them
  #lens = new Rows<LensRow, Lens>(
    this,
    () => this.#path(),
    (row, i) => this.#put(this.#asked, [row], i),
    (lens) => this.#whole(lens),
  );
  #stop = () => {};

  static override styles = [
    Follower.styles,
    css`
      .wrap {
        overflow-x: auto;
        position: relative;
        padding-bottom: 0.3rem;
      }
      caption {
        position: relative;
      }
      .grid {
        border-collapse: separate;
        border-spacing: 3px 2px;
        width: 100%;
        table-layout: fixed;
      }
      .grid th,
      .grid td {
        font-size: 0.75rem;
        height: 1.55rem;
        padding: 0 0.2rem;
        overflow: hidden;
        text-overflow: ellipsis;
        white-space: nowrap;
        text-align: center;
        font-weight: 400;
      }
      .grid td {
        font-family: var(--mono);
        border-radius: 3px;
        background: var(--wash);
      }
      .grid th.name {
        width: 4.9rem;
        text-align: left;
        color: var(--soft);
        position: sticky;
        left: 0;
        background: var(--paper);
        z-index: 1;
      }
      .grid button {
        width: 100%;
        font-family: var(--mono);
        font-size: 0.75rem;
        font-weight: 650;
        background: none;
        border: 0;
        border-bottom: 2px solid var(--line);
        border-radius: 0;
        padding: 0.2rem 0;
        overflow: hidden;
        text-overflow: ellipsis;
      }
      .grid button[aria-pressed="true"] {
        background: none;
        color: inherit;
        border-bottom-color: var(--query);
      }
      .best {
        border-collapse: collapse;
        font-size: 0.82rem;
      }
      .best th {
        text-align: left;
        font-weight: 400;
        color: var(--soft);
        padding: 0.15rem 1rem 0.15rem 0;
        white-space: nowrap;
      }
      .best td {
        padding: 0.15rem 0.9rem 0.15rem 0;
        white-space: nowrap;
      }
      .best td .num {
        color: var(--soft);
        margin-left: 0.3rem;
      }
    `,
  ];

  override connectedCallback(): void {
    super.connectedCallback();
    this.#stop = onScheme(() => this.requestUpdate());
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#stop();
  }

  get #come(): Come {
    const { trace } = this.session,
      found = (trace && come.get(trace)) ?? { rows: new Map(), whole: new Map() };
    if (trace) come.set(trace, found);
    return found;
  }

  /** The tokens in sight. */
  get #near(): number[] {
    const { session } = this,
      last = session.tokens.length - 1,
      beside = around();
    const from = Math.max(0, Math.min(session.here.query - beside, last - 2 * beside)),
      to = Math.min(last, from + 2 * beside);
    return Array.from({ length: to - from + 1 }, (_, i) => from + i);
  }

  /** What is still to come of the tokens in sight. */
  #path(): string | null {
    const { whole } = this.#come,
      missing = this.#near.filter((at) => !whole.has(at));
    if (!missing.length) return null;
    this.#asked = missing;
    return this.session.ofTrace("lens", { top: TOP, position: missing.join(","), stream: true });
  }

  #put(tokens: number[], rows: LensRow[], from: number): void {
    tokens.forEach((at, column) => {
      const kept = this.#come.rows.get(at) ?? [];
      rows.forEach((row, i) => (kept[from + i] = row.top[column] ?? []));
      this.#come.rows.set(at, kept);
    });
  }

  #whole(lens: Lens): void {
    this.#put(lens.positions, lens.rows, 0);
    for (const at of lens.positions) this.#come.whole.set(at, lens.receipt);
  }

  #floor(i: number): string {
    return i === (this.session.anatomy?.layers.length ?? 0) ? "the model" : i === 0 ? "embedding" : `block ${i - 1}`;
  }

  override render() {
    const { session } = this,
      { query } = session.here,
      { rows, whole } = this.#come,
      near = this.#near,
      error = this.#lens.error;
    const floors = Array.from({ length: (session.anatomy?.layers.length ?? 0) + 1 }, (_, i) => i),
      own = rows.get(query),
      receipt = whole.get(query);
    return html`<div class="stack">
      <div class="stack close">
        <h3>If the model ended here: the likeliest next token, block by block</h3>
        <p class="small soft">
          The stream after each block, read by the head as if it were the last. Only the last row is what the model
          says.
        </p>
      </div>
      ${error ? html`<gf-refused reason=${error.message}></gf-refused>` : nothing}
      <div class="wrap" tabindex="0" role="region" aria-label="The likeliest next token, block by block">
        <table class="grid" aria-busy=${whole.has(query) ? "false" : "true"}>
          <caption>
            <span class="away">The likeliest next token after each block</span>
          </caption>
          <thead>
            <tr>
              <th class="name"><span class="away">after</span></th>
              ${near.map(
                (at) =>
                  html`<th scope="col">
                    <button aria-pressed=${at === query} title="token ${at}" @click=${() => session.go({ query: at })}>
                      ${visible(session.tokens[at]?.text ?? "")}
                    </button>
                  </th>`,
              )}
            </tr>
          </thead>
          <tbody>
            ${floors.map(
              (i) =>
                html`<tr>
                  <th scope="row" class="name">${this.#floor(i)}</th>
                  ${near.map((at) => this.#cell(rows.get(at)?.[i]?.[0]))}
                </tr>`,
            )}
          </tbody>
        </table>
      </div>
      ${
        own
          ? html`<div class="wrap" tabindex="0" role="region" aria-label="The five likeliest after each block">
              <table class="best">
                <caption>
                  <span class="away">After token ${query}, the five likeliest</span>
                </caption>
                <tbody>
                  ${floors.map(
                    (i) =>
                      html`<tr>
                        <th scope="row">${this.#floor(i)}</th>
                        ${(own[i] ?? []).map(
                          (one) =>
                            html`<td>
                              <span class="num tok">${visible(one.token)}</span
                              ><span class="num">${percent(share(one))}</span>
                            </td>`,
                        )}
                      </tr>`,
                  )}
                </tbody>
              </table>
            </div>`
          : nothing
      }
      ${
        receipt
          ? html`<gf-receipt .of=${{ ...receipt, python: `t.lens(top=${TOP}, position=${query})` }}></gf-receipt>`
          : nothing
      }
    </div>`;
  }

  #cell(one: Likely | undefined) {
    if (!one) return html`<td></td>`; // it is still being computed
    const p = share(one),
      colour = shareColour(p, currentScheme());
    return html`<td class="cell" title="${percent(p)}" ${look({ background: rgb(colour), color: readable(colour) })}>
      ${visible(one.token)}<span class="away"> ${percent(p)}</span>
    </td>`;
  }
}

const share = (one: Likely): number => Math.exp(num(one.logprob));
