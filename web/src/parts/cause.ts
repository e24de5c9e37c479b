/**
 * The edit that tests a picture: the same text under one change, written anew, beside the original. Attention is no
 * explanation; this is what a claim about it is held against.
 */
import { css, html, nothing } from "lit";
import { customElement, property, state } from "lit/decorators.js";
import type { Edit } from "../lib/address.js";
import type { TraceInfo, TraceToken } from "../shapes.js";
import { Refused } from "../transport.js";
import { Follower } from "../view.js";
import { visible } from "./token.js";

@customElement("gf-cause")
export class Cause extends Follower {
  @property({ attribute: false }) edit: Edit | null = null;
  @property() label = "";
  @state() private found: { key: string; before: TraceInfo; trace: TraceInfo } | null = null;
  @state() private busy = false;
  @state() private wrong = "";

  static override styles = [
    Follower.styles,
    css`
      div.box {
        border: 1px solid var(--line);
        border-radius: 10px;
        padding: 0.8rem 1rem;
        display: grid;
        gap: 0.6rem;
        background: var(--card);
      }
      dl {
        display: grid;
        grid-template-columns: 5.4rem minmax(0, 1fr);
        gap: 0.3rem 0.8rem;
        font-size: 0.84rem;
      }
      dt {
        color: var(--soft);
      }
      dd {
        font-family: var(--mono);
        font-size: 0.8rem;
        overflow-wrap: anywhere;
      }
      mark {
        background: color-mix(in srgb, var(--key) 22%, transparent);
        color: inherit;
        border-radius: 3px;
      }
    `,
  ];

  get #key(): string {
    return `${this.session.trace?.id} ${JSON.stringify(this.edit)}`;
  }

  override render() {
    const { trace } = this.session,
      found = this.found?.key === this.#key ? this.found : null;
    if (!this.edit || !trace || !this.session.live) return nothing;
    const reads = this.session.anatomy?.kind === "encoder"; // and writes nothing: what changes is what is drawn
    return html`<div class="box">
      <div class="row">
        <h3>Does it cause what it seems to?</h3>
        ${
          reads
            ? html`<button @click=${this.#keep}>${this.label.replace("write anew", "look again")}</button>`
            : html`<button ?disabled=${this.busy} @click=${this.#try}>${this.label}</button>`
        }
      </div>
      ${this.wrong ? html`<p class="small" role="status">${this.wrong}</p>` : nothing}
      ${found ? this.#beside(found.before, found.trace) : nothing}
    </div>`;
  }

  #beside(before: TraceInfo, after: TraceInfo) {
    const was = written(before),
      is = written(after),
      same = was.length === is.length && was.every((token, i) => token.id === is[i]?.id);
    const words = (some: TraceToken[], others: TraceToken[]) =>
      some.map((token, i) =>
        others[i]?.id === token.id ? visible(token.text) : html`<mark>${visible(token.text)}</mark>`,
      );
    return html`<dl role="status">
        <dt>as it was</dt>
        <dd>${words(was, is)}</dd>
        <dt>under the edit</dt>
        <dd>${words(is, was)}</dd>
      </dl>
      <p class="small">
        ${
          was.length === 0
            ? "Nothing was to be written: let it write some tokens."
            : same
              ? "The same text: for what it wrote here, this was not needed."
              : "Another text: what was taken out mattered."
        }
        <button @click=${this.#keep}>Keep the edit, and look around</button>
      </p>`;
  }

  #keep = (): void => {
    if (this.edit) this.session.go({ edits: [...this.session.place.edits, this.edit] });
  };

  #try = async (): Promise<void> => {
    const { session, edit } = this,
      key = this.#key,
      { place, trace: open } = session;
    if (!edit || !open) return;
    this.busy = true;
    this.wrong = "";
    const given = open.target !== undefined && place.more["target"] !== undefined; // what stands there is not what it would write
    const write = !given ? undefined : place.write > 0 ? Math.max(place.write, open.tokens.length) : 0; // as far as what is edited
    try {
      const before = given ? await session.read(session.edits, write) : open;
      this.found = { key, before, trace: await session.read([...session.edits, edit], write) };
    } catch (error) {
      this.wrong = error instanceof Refused ? error.message : String(error);
    }
    this.busy = false;
  };
}

/** What a trace's model wrote. */
const written = (trace: TraceInfo): TraceToken[] => trace.target?.tokens ?? trace.tokens.slice(trace.n_prompt);
