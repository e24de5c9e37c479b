/** The tokens of the prompt and of the generated text, with the selected query and key marked. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import { visibleText } from "../components/token.js";
import { views, SessionElement } from "../view.js";

@customElement("gf-tokens")
export class TokenRow extends SessionElement {
  static override styles = [
    SessionElement.styles,
    css`
      .tokens {
        display: flex;
        flex-wrap: wrap;
        gap: 0.22rem 0;
        max-height: 7.4rem;
        overflow-y: auto;
        line-height: 1.3;
        padding: 0.15rem 2px;
      }
      button {
        border: 0;
        background: none;
        border-radius: 4px;
        padding: 0.1rem 0.12rem;
        margin-right: 1px;
        white-space: nowrap;
        font-family: var(--mono);
        font-size: 0.82rem;
        border-bottom: 2px solid var(--line);
      }
      button[aria-pressed="true"] {
        color: inherit;
      }
      button:hover {
        background: var(--wash);
      }
      button.generated {
        font-weight: 650;
        border-bottom-color: var(--soft);
      }
      button.query {
        border-bottom-color: var(--query);
        background: color-mix(in srgb, var(--query) 14%, transparent);
      }
      button.key {
        border-bottom-color: var(--key);
        background: color-mix(in srgb, var(--key) 16%, transparent);
      }
      button.query.key {
        border-bottom-style: double;
      }
      .blank {
        opacity: 0.42;
      }
      .note {
        max-width: none;
        font-size: 0.76rem;
        color: var(--soft);
        margin-top: 0.45rem;
        display: flex;
        gap: 0.3rem 1.1rem;
        flex-wrap: wrap;
      }
      kbd {
        font-family: var(--mono);
      }
      .nan {
        font-size: 0.86rem;
        margin-top: 0.6rem;
        border-left: 3px solid var(--key);
        padding-left: 0.7rem;
      }
      .sample {
        border-bottom: 2px solid;
      }
      .live {
        border-bottom-color: var(--soft);
        animation: none;
      }
      @media (max-width: 720px) {
        .tokens {
          max-height: 6.4rem;
        }
      }
    `,
  ];

  override render() {
    const { session } = this,
      { trace, generated, cursor } = session,
      source = trace?.source;
    const view = views().find((one) => one.id === session.address.view);
    const keys = view?.arrows?.includes("key") ?? false;
    if (generated) {
      return html`<div class="tokens" role="status" aria-label="Generation in progress">
          ${[...session.address.text].slice(-160).join("")}${generated.map(
            (token) => html`<button disabled class="generated">${this.#text(token.text)}</button>`,
          )}<span class="soft">▍</span>
        </div>
        <p class="note">
          <span
            >${
              generated.length ? `${generated.length} tokens generated; ${session.processed} cached` : "prefill …"
            }</span
          >
        </p>`;
    }
    if (!trace) return nothing;
    return html`<div class="tokens" role="group" aria-label="Tokens">
        ${trace.tokens.map(
          (token, i) =>
            html`<button
              class="${i >= trace.n_prompt ? "generated" : ""} ${i === cursor.query ? "query" : ""} ${
                keys && session.keyTokens === session.tokens && i === cursor.key ? "key" : ""
              }"
              aria-pressed=${i === cursor.query ? "true" : "false"}
              title="token ${i}, id ${token.id}"
              @click=${(event: MouseEvent) => this.#pick(i, keys && event.altKey)}
            >
              ${this.#text(token.text)}
            </button>`,
        )}
      </div>
      <p class="note">
        ${source ? html`<span>source: ${source.tokens.length} tokens</span>` : nothing}<span
          >${trace.n_prompt} prompt tokens, ${trace.tokens.length - trace.n_prompt} generated</span
        >
        <span><span class="sample q">query</span> ${cursor.query}</span
        >${keys ? html`<span><span class="sample k">key</span> ${cursor.key}</span>` : nothing}
        ${
          view?.arrows
            ? html`<span
                >arrow keys:
                ${keys ? "key, query" : "query"}${
                  view.arrows.includes("layer")
                    ? html` · with Shift: ${view.arrows.includes("head") ? "head, " : ""}block`
                    : nothing
                }</span
              >`
            : nothing
        }${
          view?.steps && !(view.id === "alignment" && session.anatomy?.kind === "recurrent")
            ? html`<span><kbd>,</kbd> and <kbd>.</kbd> step through ${view.steps}</span>`
            : nothing
        }
      </p>
      ${
        trace.finish === "nan"
          ? html`<p class="nan" role="alert">
              <b>Generation stopped because the logits are NaN.</b>
              ${
                trace.edits.length
                  ? "An edit made a value overflow. Remove an edit."
                  : "A value overflows the data type of the model."
              }
            </p>`
          : nothing
      }`;
  }

  /** Scroll the selected token into view without scrolling the page. */
  override updated(): void {
    const row = this.renderRoot.querySelector<HTMLElement>(".tokens"),
      one = row?.querySelector<HTMLElement>(".query");
    if (!row || !one) return;
    const top = one.offsetTop - row.offsetTop;
    if (top < row.scrollTop || top + one.offsetHeight > row.scrollTop + row.clientHeight)
      row.scrollTop = top - row.clientHeight / 2;
  }

  #text(text: string) {
    return [...visibleText(text)].map((c) => ("·⏎⇥␍".includes(c) ? html`<span class="blank">${c}</span>` : c));
  }

  #pick(i: number, asKey: boolean): void {
    this.session.navigate(asKey ? { key: i } : { query: i });
  }
}
