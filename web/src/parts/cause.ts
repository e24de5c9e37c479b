/**
 * The edit that tests a picture: the same text under one change, written anew, beside the original. Attention is no
 * explanation; this is what a claim about it is held against.
 */
import { css, html, nothing } from "lit";
import { customElement, property, state } from "lit/decorators.js";
import type { Edit } from "../lib/address.js";
import type { TraceInfo } from "../shapes.js";
import { Refused } from "../transport.js";
import { Follower } from "../view.js";
import { visible } from "./token.js";

@customElement("gf-cause")
export class Cause extends Follower {
  @property({ attribute: false }) edit: Edit | null = null;
  @property() label = "";
  @state() private found: { key: string; trace: TraceInfo } | null = null;
  @state() private busy = false;
  @state() private wrong = "";

  static override styles = [Follower.styles, css`
    div.box { border: 1px solid var(--line); border-radius: 10px; padding: 0.8rem 1rem; display: grid; gap: 0.6rem; background: var(--card); }
    dl { display: grid; grid-template-columns: 5.4rem minmax(0, 1fr); gap: 0.3rem 0.8rem; font-size: 0.84rem; } dt { color: var(--soft); }
    dd { font-family: var(--mono); font-size: 0.8rem; overflow-wrap: anywhere; } mark { background: color-mix(in srgb, var(--key) 22%, transparent); color: inherit; border-radius: 3px; }
  `];

  get #key(): string {
    return `${this.session.trace?.id} ${JSON.stringify(this.edit)}`;
  }

  override render() {
    const { trace } = this.session, found = this.found?.key === this.#key ? this.found.trace : null;
    const edited = this.session.anatomy?.kind === "decoder"; // the others are not
    if (!this.edit || !trace || !this.session.live || !edited) return nothing;
    return html`<div class="box"><div class="row"><h3>Does it cause what it seems to?</h3><button ?disabled=${this.busy} @click=${this.#try}>${this.label}</button></div>
      ${this.wrong ? html`<p class="small" role="status">${this.wrong}</p>` : nothing}
      ${found ? this.#beside(trace, found) : nothing}</div>`;
  }

  #beside(before: TraceInfo, after: TraceInfo) {
    const words = (trace: TraceInfo, other: TraceInfo) => trace.tokens.slice(trace.n_prompt).map((token, i) => (other.tokens[other.n_prompt + i]?.id === token.id ? visible(token.text) : html`<mark>${visible(token.text)}</mark>`));
    const same = before.tokens.length === after.tokens.length && before.tokens.every((token, i) => token.id === after.tokens[i]?.id);
    return html`<dl role="status"><dt>as it was</dt><dd>${words(before, after)}</dd><dt>under the edit</dt><dd>${words(after, before)}</dd></dl>
      <p class="small">${before.tokens.length === before.n_prompt ? "Nothing was to be written: let it write some tokens." : same ? "The same text: for what it wrote here, this was not needed." : "Another text: what was taken out mattered."}
        <button @click=${() => this.edit && this.session.go({ edits: [...this.session.place.edits, this.edit] })}>Keep the edit, and look around</button></p>`;
  }

  #try = async (): Promise<void> => {
    const { session, edit } = this, key = this.#key;
    if (!edit) return;
    this.busy = true;
    this.wrong = "";
    try {
      const trace = await session.read([...session.edits, edit]);
      this.found = { key, trace };
    } catch (error) {
      this.wrong = error instanceof Refused ? error.message : String(error);
    }
    this.busy = false;
  };
}
