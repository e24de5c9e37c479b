/** The server wants a key: asks for it. */
import { css, html } from "lit";
import { customElement } from "lit/decorators.js";
import { Follower } from "../view.js";

@customElement("gf-key")
export class KeyPrompt extends Follower {
  static override styles = [
    Follower.styles,
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
      <h2>This server wants a key</h2>
      <p class="soft">
        The one that it was started with (<code>--api-key</code>). It stays in this tab and goes to this server alone.
      </p>
      <div class="row">
        <input type="password" name="key" aria-label="Key" autocomplete="current-password" required />
        <button class="strong">Open</button>
      </div>
      <p class="small" role="status">${this.session.problem?.message ?? ""}</p>
    </form>`;
  }

  #send(event: SubmitEvent): void {
    event.preventDefault();
    const key = new FormData(event.target as HTMLFormElement).get("key");
    this.dispatchEvent(new CustomEvent("key", { detail: String(key) }));
  }
}
