/** Form for the API key of the server. */
import { css, html } from "lit";
import { customElement } from "lit/decorators.js";
import { SessionElement } from "../view.js";

@customElement("gf-key-prompt")
export class KeyPrompt extends SessionElement {
  static override styles = [
    SessionElement.styles,
    css`
      form {
        border: 1px solid var(--line);
        border-radius: 12px;
        padding: 1.5rem;
        max-width: 30rem;
        display: grid;
        gap: 0.8rem;
        background: var(--card);
      }
      .row {
        flex-wrap: nowrap;
      }
      input {
        flex: 1;
      }
    `,
  ];

  override render() {
    return html`<form @submit=${this.#send}>
      <h2>API key required</h2>
      <p class="soft">
        Enter the key that the server was started with (<code>--api-key</code>). It is stored for this tab and sent only
        to this server.
      </p>
      <div class="row">
        <input type="password" name="key" aria-label="API key" autocomplete="current-password" required />
        <button class="strong">Continue</button>
      </div>
      <p class="small" role="status">${this.session.error?.message ?? ""}</p>
    </form>`;
  }

  #send(event: SubmitEvent): void {
    event.preventDefault();
    const key = new FormData(event.target as HTMLFormElement).get("key");
    this.dispatchEvent(new CustomEvent("key", { detail: String(key) }));
  }
}
