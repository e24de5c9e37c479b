/** Header: model, prompt, and generation settings. */
import { css, html, nothing } from "lit";
import { customElement, query, state } from "lit/decorators.js";
import "../components/edit_list.js";
import { SessionElement } from "../view.js";

@customElement("gf-header")
export class Header extends SessionElement {
  @query("textarea") private box!: HTMLTextAreaElement;
  @state() private typed: string | null = null; // null: not edited, use the address

  static override styles = [
    SessionElement.styles,
    css`
      header {
        display: grid;
        grid-template-columns: 11.5rem minmax(0, 1fr) auto;
        column-gap: 2rem;
        row-gap: 0.6rem;
        align-items: start;
        padding: 1.1rem 0 0.9rem;
      }
      .brand {
        display: grid;
        gap: 0.35rem;
      }
      .brand b {
        font-size: 1.08rem;
        font-weight: 650;
        letter-spacing: -0.015em;
      }
      .brand select {
        width: 100%;
        font-size: 0.82rem;
        padding: 0.2rem 0.35rem;
      }
      textarea {
        width: 100%;
        resize: none;
        line-height: 1.45;
        padding: 0.55rem 0.8rem;
        min-height: 2.6rem;
        max-height: 9rem;
        field-sizing: content;
        border-radius: 9px;
      }
      .how {
        display: flex;
        gap: 0.9rem;
        align-items: center;
        padding-top: 0.2rem;
      }
      label {
        display: grid;
        font-size: 0.72rem;
        color: var(--soft);
        gap: 0.15rem;
      }
      label input {
        width: 4.2rem;
        color: var(--ink);
        font-size: 0.88rem;
        padding: 0.2rem 0.4rem;
        font-variant-numeric: tabular-nums;
      }
      .how button {
        min-width: 5.2rem;
        padding-block: 0.5rem;
      }
      .text {
        overflow-wrap: anywhere;
        white-space: pre-wrap;
        max-width: none;
        padding-top: 0.1rem;
      }
      .baked {
        max-width: 24rem;
        overflow-wrap: anywhere;
      }
      .edits {
        grid-column: 2 / -1;
      }
      @media (max-width: 1100px) {
        header {
          grid-template-columns: 9rem minmax(0, 1fr) auto;
          column-gap: 1.5rem;
        }
      }
      @media (max-width: 720px) {
        header {
          grid-template-columns: 1fr;
        }
        .brand {
          grid-template-columns: 1fr auto;
          align-items: baseline;
        }
        .brand select {
          width: auto;
        }
        .how {
          justify-content: space-between;
        }
        .edits {
          grid-column: 1;
        }
      }
    `,
  ];

  override render() {
    const { session } = this,
      { address } = session,
      busy = session.generated !== null;
    const models =
      session.models.includes(session.model) || !session.model ? session.models : [session.model, ...session.models];
    return html`<header>
      <div class="brand">
        <b>Glassformer</b>
        <select
          aria-label="Model"
          @change=${(event: Event) => session.selectModel((event.target as HTMLSelectElement).value)}
        >
          ${models.map((name) => html`<option .selected=${name === session.model} value=${name}>${name}</option>`)}
        </select>
      </div>
      ${
        session.live
          ? this.#promptForm(busy)
          : html`<p class="text">${address.text}</p>
              <p class="baked small soft" role="note">${session.transport.note}</p>`
      }
      <gf-edit-list class="edits" .session=${session}></gf-edit-list>
    </header>`;
  }

  #promptForm(busy: boolean) {
    const { session } = this,
      { address } = session,
      encoder = session.kinds[session.model] === "encoder"; // cannot generate
    return html`<textarea
        aria-label="Prompt"
        rows="2"
        spellcheck="false"
        .value=${this.typed ?? address.text}
        @input=${() => (this.typed = this.box.value)}
        @keydown=${this.#enter}
      ></textarea>
      <div class="how">
        ${
          encoder
            ? nothing
            : html`<label
                >max tokens<input
                  type="number"
                  name="max_tokens"
                  min="0"
                  max="9999"
                  .value=${String(address.max_tokens)}
              /></label>`
        }
        ${
          (session.kinds[session.model] ?? "decoder") !== "decoder"
            ? nothing
            : html`<label
                >temperature<input
                  type="number"
                  name="temperature"
                  min="0"
                  max="2"
                  step="0.1"
                  .value=${String(address.temperature)}
              /></label>`
        }
        ${
          address.temperature > 0 && !encoder
            ? html`<label>seed<input type="number" name="seed" min="0" .value=${String(address.seed)} /></label>`
            : nothing
        }
        ${
          busy
            ? html`<button
                class="strong"
                @click=${() => {
                  session.stop();
                  session.notify();
                }}
              >
                Stop
              </button>`
            : html`<button class="strong" @click=${this.#generate}>${encoder ? "Encode" : "Generate"}</button>`
        }
      </div>`;
  }

  #number(name: "max_tokens" | "temperature" | "seed"): number {
    const input = this.renderRoot.querySelector<HTMLInputElement>(`input[name=${name}]`);
    const value = input ? Number(input.value) : NaN;
    return input && input.value !== "" && Number.isFinite(value) ? value : this.session.address[name];
  }

  #generate = (): void => {
    const { address } = this.session,
      text = this.box.value;
    const max_tokens = Math.trunc(this.#number("max_tokens")),
      temperature = this.#number("temperature");
    let seed = Math.trunc(this.#number("seed"));
    const same =
      text === address.text &&
      max_tokens === address.max_tokens &&
      temperature === address.temperature &&
      seed === address.seed;
    if (same && temperature > 0) seed += 1; // draw again with the next seed
    this.typed = null;
    const moved = text === address.text ? {} : { query: -1, key: -1 };
    this.session.navigate({ text, max_tokens, temperature, seed, ...moved }, true);
    if (same && temperature === 0) void this.session.open();
  };

  #enter = (event: KeyboardEvent): void => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.#generate();
  };
}
