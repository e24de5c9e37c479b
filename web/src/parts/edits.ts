/** The edits of the address, each in words: to be put aside and back, and to be taken back. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import type { Edit } from "../lib/address.js";
import { inWords } from "../lib/words.js";
import { Follower } from "../view.js";

@customElement("gf-edits")
export class Edits extends Follower {
  static override styles = [
    Follower.styles,
    css`
      :host(:not([hidden])) {
        display: block;
      }
      div {
        display: flex;
        gap: 0.4rem 0.5rem;
        flex-wrap: wrap;
        font-size: 0.82rem;
        align-items: center;
      }
      span {
        display: inline-flex;
        border: 1px solid var(--line);
        border-radius: 99px;
        background: var(--card);
        overflow: hidden;
      }
      span.off {
        background: none;
        border-style: dashed;
      }
      span.off .name {
        color: var(--soft);
        text-decoration: line-through;
      }
      button {
        border: 0;
        background: none;
        border-radius: 0;
        padding: 0.1rem 0.5rem 0.1rem 0.75rem;
        font-size: inherit;
        text-align: left;
      }
      button:last-child {
        padding: 0.1rem 0.65rem 0.1rem 0.4rem;
        color: var(--soft);
      }
      button:hover:not(:disabled) {
        background: var(--wash);
        color: var(--ink);
      }
      button[aria-pressed="true"] {
        background: none;
        color: inherit;
      }
      button.all {
        text-decoration: underline;
        text-underline-offset: 2px;
        padding-left: 0.3rem;
        color: var(--soft);
      }
    `,
  ];

  override render() {
    const { edits } = this.session.place;
    if (!edits.length) return nothing;
    return html`<div role="group" aria-label="Edits">
      under:
      ${edits.map((edit, i) => {
        const words = inWords(edit),
          off = Boolean(edit["off"]);
        return html`<span class=${off ? "off" : ""}
          ><button
            class="name"
            aria-pressed=${!off}
            title=${off ? "put it back" : "put it aside"}
            @click=${() => this.#change(i, turned(edit))}
          >
            ${words}
          </button>
          <button aria-label="Take back ${words}" @click=${() => this.#change(i)}>×</button></span
        >`;
      })}${
        edits.length > 1
          ? html`<button class="all" @click=${() => this.session.go({ edits: [] })}>take all back</button>`
          : nothing
      }
    </div>`;
  }

  /** In a report the text is there with all edits or without: they go together. */
  #change(i: number, ...now: Edit[]): void {
    const { place, live } = this.session,
      { edits } = place;
    this.session.go({ edits: live ? edits.toSpliced(i, 1, ...now) : now.length ? edits.map(turned) : [] });
  }
}

/** The edit put aside, or back. */
function turned(edit: Edit): Edit {
  const { off, ...rest } = edit;
  return off ? rest : { ...rest, off: true };
}
