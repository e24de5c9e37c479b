/** Previous and next buttons, also operated by the keys `,` and `.` anywhere on the page. */
import { css, html } from "lit";
import { customElement, property } from "lit/decorators.js";
import { SessionElement } from "../view.js";

@customElement("gf-stepper")
export class Stepper extends SessionElement {
  @property({ type: Number }) at = -1; // -1: before the first
  @property({ type: Number }) n = 0;
  @property() what = "stage"; // name of one step
  @property({ type: Boolean }) none = false; // allows position -1

  static override styles = [
    SessionElement.styles,
    css`
      :host {
        display: inline-block;
      }
      div {
        display: flex;
        flex-wrap: wrap;
        gap: 0.3rem 0.5rem;
        align-items: center;
        font-size: 0.82rem;
        color: var(--soft);
      }
      button {
        padding: 0.15rem 0.6rem;
        color: var(--ink);
      }
      kbd {
        font-family: var(--mono);
        border: 1px solid var(--line);
        border-radius: 4px;
        padding: 0 0.35rem;
        background: var(--card);
      }
    `,
  ];

  override connectedCallback(): void {
    super.connectedCallback();
    this.session.addEventListener("step", this.#key);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.session.removeEventListener("step", this.#key);
  }

  get #least(): number {
    return this.none ? -1 : 0;
  }

  override render() {
    return html`<div role="group" aria-label="Step through">
      <button aria-label="previous ${this.what}" ?disabled=${this.at <= this.#least} @click=${() => this.#go(-1)}>
        ←
      </button>
      <button aria-label="next ${this.what}" ?disabled=${this.at >= this.n - 1} @click=${() => this.#go(1)}>→</button>
      <span><slot></slot></span><span>keys <kbd>,</kbd> <kbd>.</kbd></span>
    </div>`;
  }

  #key = (event: Event): void => this.#go((event as CustomEvent<number>).detail);

  #go(by: number): void {
    const to = Math.min(this.n - 1, Math.max(this.#least, this.at + by));
    if (to !== this.at) this.dispatchEvent(new CustomEvent<number>("step", { detail: to }));
  }
}
