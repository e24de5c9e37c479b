/** Selects for block and head. */
import { css, html, nothing } from "lit";
import { customElement, property } from "lit/decorators.js";
import { SessionElement } from "../view.js";

@customElement("gf-head-picker")
export class HeadPicker extends SessionElement {
  @property({ type: Boolean }) nohead = false;

  static override styles = [
    SessionElement.styles,
    css`
      :host {
        display: inline-block;
      }
      .row {
        gap: 0.4rem 1.1rem;
        align-items: center;
      }
      label {
        font-size: 0.82rem;
        color: var(--soft);
        display: inline-flex;
        gap: 0.4rem;
        align-items: center;
      }
      select {
        color: var(--ink);
        padding: 0.12rem 0.3rem;
        font-size: 0.84rem;
      }
    `,
  ];

  override render() {
    const { cursor, anatomy } = this.session,
      heads = anatomy?.layers[cursor.layer]?.n_heads ?? 1;
    const choose = (name: "layer" | "head", n: number, at: number) =>
      html`<label
        >${name === "layer" ? "block" : "head"}
        <select
          @change=${(event: Event) =>
            this.session.navigate({ [name]: Number((event.target as HTMLSelectElement).value) })}
        >
          ${Array.from({ length: n }, (_, i) => html`<option value=${i} .selected=${i === at}>${i}</option>`)}
        </select></label
      >`;
    return html`<span class="row"
      >${choose(
        "layer",
        anatomy?.layers.length ?? 1,
        cursor.layer,
      )}${this.nohead ? nothing : choose("head", heads, cursor.head)}</span
    >`;
  }
}
