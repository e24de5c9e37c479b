/** The list of edits, each of which can be disabled, enabled and removed. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import type { Edit } from "../lib/address.js";
import { describeEdit } from "../lib/edit_text.js";
import { SessionElement } from "../view.js";

@customElement("gf-edit-list")
export class EditList extends SessionElement {
  static override styles = [
    SessionElement.styles,
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
    const { edits } = this.session.address;
    if (!edits.length) return nothing;
    return html`<div role="group" aria-label="Edits">
      edits:
      ${edits.map((edit, i) => {
        const description = describeEdit(edit),
          off = Boolean(edit["off"]);
        return html`<span class=${off ? "off" : ""}
          ><button
            class="name"
            aria-pressed=${!off}
            title=${off ? "enable" : "disable"}
            @click=${() => this.#change(i, toggled(edit))}
          >
            ${description}
          </button>
          <button aria-label="Remove ${description}" @click=${() => this.#change(i)}>×</button></span
        >`;
      })}${
        edits.length > 1
          ? html`<button class="all" @click=${() => this.session.navigate({ edits: [] })}>remove all edits</button>`
          : nothing
      }
    </div>`;
  }

  /** Replace or remove an edit. A report has traces only with all edits or with none, so all change together. */
  #change(i: number, ...now: Edit[]): void {
    const { address, live } = this.session,
      { edits } = address;
    this.session.navigate({ edits: live ? edits.toSpliced(i, 1, ...now) : now.length ? edits.map(toggled) : [] });
  }
}

/** Return an edit with its enabled state inverted. */
function toggled(edit: Edit): Edit {
  const { off, ...rest } = edit;
  return off ? rest : { ...rest, off: true };
}
