/** Of view 11: the likeliest next token at every block, for the tokens around the one looked at. */
import { css, html, nothing } from "lit";
import { customElement, property } from "lit/decorators.js";
import "../parts/receipt.js";
import "../parts/refused.js";
import { Ask } from "../ask.js";
import { css as rgb, currentScheme, readable, shareColour } from "../lib/colour.js";
import { look } from "../lib/look.js";
import { num, percent } from "../lib/number.js";
import { visible } from "../parts/token.js";
import { onScheme } from "../parts/scheme.js";
import type { Lens, Likely } from "../shapes.js";
import { Follower } from "../view.js";

const AROUND = 4; // tokens on either side

const share = (one: Likely | undefined): number => Math.exp(num(one?.logprob ?? "-Infinity"));
const floor = (name: string, last: boolean): string => {
  const block = Number(/\d+/.exec(name)?.[0] ?? 0);
  return last ? "the model" : block === 0 ? "embedding" : `block ${block - 1}`;
};

/** One token's column: asked for by itself, so that the first is there at once. */
@customElement("gf-lens-column")
export class LensColumn extends Follower {
  @property({ type: Number }) position = 0;
  @property({ type: Boolean }) chosen = false;
  #lens = new Ask<Lens>(this, () => this.session.ofTrace("lens", { top: 5, position: this.position }));
  #stop = () => {};

  static override styles = [Follower.styles, css`
    :host { flex: 1 1 0; min-width: 4.1rem; }
    button, .cell { display: block; width: 100%; font-family: var(--mono); font-size: 0.75rem; height: 1.55rem; line-height: 1.5rem; border: 0; border-radius: 3px; padding: 0 0.2rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; text-align: center; margin-bottom: 2px; position: relative; }
    button { background: none; font-weight: 650; border-bottom: 2px solid var(--line); border-radius: 0; }
    button[aria-pressed="true"] { background: none; color: inherit; border-bottom-color: var(--query); }
  `];

  override connectedCallback(): void {
    super.connectedCallback();
    this.#stop = onScheme(() => this.requestUpdate());
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#stop();
  }

  override render() {
    const lens = this.#lens.value, scheme = currentScheme(), token = this.session.tokens[this.position]?.text ?? "";
    return html`<button aria-pressed=${this.chosen} title="token ${this.position}" @click=${() => this.session.go({ query: this.position })}>${visible(token)}</button>
      ${this.#lens.error ? html`<span class="cell" title=${this.#lens.error.message}>refused</span>` : nothing}
      ${lens?.rows.map((row) => {
        const one = row.top[0]?.[0], p = share(one), colour = shareColour(p, scheme);
        return html`<span class="cell" title="${percent(p)}" ${look({ background: rgb(colour), color: readable(colour) })}>${visible(one?.token ?? "")}<span class="away"> ${percent(p)}</span></span>`;
      })}`;
  }
}

@customElement("gf-lens-grid")
export class LensGrid extends Follower {
  #lens = new Ask<Lens>(this, () => this.session.ofTrace("lens", { top: 5, position: this.session.here.query }));

  static override styles = [Follower.styles, css`
    .grid { display: flex; gap: 3px; overflow-x: auto; padding-bottom: 0.3rem; }
    .names { flex: 0 0 5.4rem; font-size: 0.75rem; color: var(--soft); padding-top: 1.6rem; position: sticky; left: 0; background: var(--paper); }
    .names span { display: block; height: 1.55rem; line-height: 1.55rem; margin-bottom: 2px; }
    table { border-collapse: collapse; font-size: 0.82rem; } th { text-align: left; font-weight: 400; color: var(--soft); padding: 0.15rem 1rem 0.15rem 0; white-space: nowrap; }
    td { padding: 0.15rem 0.9rem 0.15rem 0; white-space: nowrap; } td .num { color: var(--soft); margin-left: 0.3rem; }
    .wrap { overflow-x: auto; position: relative; }
    caption { position: relative; }
  `];

  override render() {
    const { session } = this, { query } = session.here, lens = this.#lens.value, last = session.tokens.length - 1;
    const from = Math.max(0, Math.min(query - AROUND, last - 2 * AROUND)), to = Math.min(last, from + 2 * AROUND);
    if (this.#lens.error) return html`<gf-refused heading="No lens" reason=${this.#lens.error.message}></gf-refused>`;
    if (!lens) return nothing;
    return html`<div class="stack"><div class="stack close"><h3>If the model ended here: the likeliest next token, block by block</h3>
      <p class="small soft">The stream after each block, read by the head as if it were the last. Only the last row is what the model says.</p></div>
      <div class="grid" tabindex="0" role="region" aria-label="The likeliest next token, block by block"><div class="names">${lens.rows.map((row, i) => html`<span>${floor(row.name, i === lens.rows.length - 1)}</span>`)}</div>
        ${Array.from({ length: to - from + 1 }, (_, i) => html`<gf-lens-column .session=${session} .position=${from + i} .chosen=${from + i === query}></gf-lens-column>`)}</div>
      <div class="wrap" tabindex="0" role="region" aria-label="The five likeliest, block by block"><table><caption><span class="away">The five likeliest after token ${query}, block by block</span></caption><tbody>${lens.rows.map((row, i) => html`<tr><th scope="row">${floor(row.name, i === lens.rows.length - 1)}</th>
        ${row.top[0]?.map((one) => html`<td><span class="tok num">${visible(one.token)}</span><span class="num">${percent(share(one))}</span></td>`)}</tr>`)}</tbody></table></div>
      <gf-receipt .of=${lens.receipt}></gf-receipt></div>`;
  }
}
