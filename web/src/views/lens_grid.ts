/** Logit lens: the most likely next token after every block, for the tokens around the selected one. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "../components/receipt.js";
import "../components/notice.js";
import { css as rgb, currentScheme, onColourSchemeChange, readable, fractionColour } from "../lib/colour.js";
import { setStyle } from "../lib/set_style.js";
import { num, percent } from "../lib/number.js";
import { visibleText } from "../components/token.js";
import { RowStream } from "../row_stream.js";
import type { Lens, LensRow, LensToken, Receipt, TraceInfo } from "../api_types.js";
import { SessionElement } from "../view.js";

const columnsPerSide = (): number => (innerWidth < 720 ? 2 : 4); // tokens on either side
const TOP = 5;

/** Results received for a trace: the rows of each token, and the receipts of complete tokens. */
interface Received {
  rows: Map<number, LensToken[][]>;
  complete: Map<number, Receipt>;
}
const received = new WeakMap<TraceInfo, Received>();

@customElement("gf-lens-grid")
export class LensGrid extends SessionElement {
  #requested: number[] = []; // requested positions, in the order of the columns of a row
  #lens = new RowStream<LensRow, Lens>(
    this,
    () => this.#path(),
    (row, i) => this.#store(this.#requested, [row], i),
    (lens) => this.#complete(lens),
  );
  #stop = () => {};

  static override styles = [
    SessionElement.styles,
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
    this.#stop = onColourSchemeChange(() => this.requestUpdate());
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#stop();
  }

  get #received(): Received {
    const { trace } = this.session,
      found = (trace && received.get(trace)) ?? { rows: new Map(), complete: new Map() };
    if (trace) received.set(trace, found);
    return found;
  }

  /** The visible positions. */
  get #positions(): number[] {
    const { session } = this,
      last = session.tokens.length - 1,
      perSide = columnsPerSide();
    const from = Math.max(0, Math.min(session.cursor.query - perSide, last - 2 * perSide)),
      to = Math.min(last, from + 2 * perSide);
    return Array.from({ length: to - from + 1 }, (_, i) => from + i);
  }

  /** The path that requests the missing visible positions, or null. */
  #path(): string | null {
    const { complete } = this.#received,
      missing = this.#positions.filter((at) => !complete.has(at));
    if (!missing.length) return null;
    this.#requested = missing;
    return this.session.traceViewPath("lens", { top: TOP, position: missing.join(","), stream: true });
  }

  #store(tokens: number[], rows: LensRow[], from: number): void {
    tokens.forEach((at, column) => {
      const received = this.#received.rows.get(at) ?? [];
      rows.forEach((row, i) => (received[from + i] = row.top[column] ?? []));
      this.#received.rows.set(at, received);
    });
  }

  #complete(lens: Lens): void {
    this.#store(lens.positions, lens.rows, 0);
    for (const at of lens.positions) this.#received.complete.set(at, lens.receipt);
  }

  #rowName(i: number): string {
    return i === (this.session.anatomy?.layers.length ?? 0) ? "output" : i === 0 ? "embedding" : `block ${i - 1}`;
  }

  override render() {
    const { session } = this,
      { query } = session.cursor,
      { rows, complete } = this.#received,
      positions = this.#positions,
      error = this.#lens.error;
    const rowIndices = Array.from({ length: (session.anatomy?.layers.length ?? 0) + 1 }, (_, i) => i),
      selectedRows = rows.get(query),
      receipt = complete.get(query);
    return html`<div class="stack">
      <div class="stack close">
        <h3>Logit lens: most likely next token after each block</h3>
        <p class="small soft">
          The LM head is applied to the residual stream after each block. Only the last row is the output of the model.
        </p>
      </div>
      ${error ? html`<gf-notice reason=${error.message}></gf-notice>` : nothing}
      <div class="wrap" tabindex="0" role="region" aria-label="Logit lens">
        <table class="grid" aria-busy=${complete.has(query) ? "false" : "true"}>
          <caption>
            <span class="away">Most likely next token after each block</span>
          </caption>
          <thead>
            <tr>
              <th class="name"><span class="away">after</span></th>
              ${positions.map(
                (at) =>
                  html`<th scope="col">
                    <button
                      aria-pressed=${at === query}
                      title="token ${at}"
                      @click=${() => session.navigate({ query: at })}
                    >
                      ${visibleText(session.tokens[at]?.text ?? "")}
                    </button>
                  </th>`,
              )}
            </tr>
          </thead>
          <tbody>
            ${rowIndices.map(
              (i) =>
                html`<tr>
                  <th scope="row" class="name">${this.#rowName(i)}</th>
                  ${positions.map((at) => this.#cell(rows.get(at)?.[i]?.[0]))}
                </tr>`,
            )}
          </tbody>
        </table>
      </div>
      ${
        selectedRows
          ? html`<div class="wrap" tabindex="0" role="region" aria-label="Five most likely tokens after each block">
              <table class="best">
                <caption>
                  <span class="away">Five most likely tokens after token ${query}</span>
                </caption>
                <tbody>
                  ${rowIndices.map(
                    (i) =>
                      html`<tr>
                        <th scope="row">${this.#rowName(i)}</th>
                        ${(selectedRows[i] ?? []).map(
                          (one) =>
                            html`<td>
                              <span class="num tok">${visibleText(one.token)}</span
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

  #cell(one: LensToken | undefined) {
    if (!one) return html`<td></td>`; // pending
    const p = share(one),
      colour = fractionColour(p, currentScheme());
    return html`<td
      class="cell"
      title="${percent(p)}"
      ${setStyle({ background: rgb(colour), color: readable(colour) })}
    >
      ${visibleText(one.token)}<span class="away"> ${percent(p)}</span>
    </td>`;
  }
}

const share = (one: LensToken): number => Math.exp(num(one.logprob));
