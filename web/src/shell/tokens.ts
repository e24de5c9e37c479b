/** The text as the model sees it: its tokens, what it wrote after them, and which one is looked at. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import { visible } from "../parts/token.js";
import { views, Follower } from "../view.js";

@customElement("gf-tokens")
export class TokenRow extends Follower {
  static override styles = [
    Follower.styles,
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
        white-space: pre;
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
      button.written {
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
      { trace, writing, here } = session,
      source = trace?.source;
    const view = views().find((one) => one.id === session.place.view);
    const keys = view?.arrows?.includes("key") ?? false;
    if (writing) {
      return html`<div class="tokens" role="status" aria-label="The text being written">
          ${[...session.place.text].slice(-160).join("")}${writing.map(
            (token) => html`<button disabled class="written">${this.#text(token.text)}</button>`,
          )}<span class="soft">▍</span>
        </div>
        <p class="note">
          <span
            >${
              writing.length ? `${writing.length} tokens written; the cache holds ${session.passed}` : "reading …"
            }</span
          >
        </p>`;
    }
    if (!trace) return nothing;
    return html`<div class="tokens" role="group" aria-label="Tokens">
        ${trace.tokens.map(
          (token, i) =>
            html`<button
              class="${i >= trace.n_prompt ? "written" : ""} ${i === here.query ? "query" : ""} ${
                keys && session.keys === session.tokens && i === here.key ? "key" : ""
              }"
              aria-pressed=${i === here.query ? "true" : "false"}
              title="token ${i}, id ${token.id}"
              @click=${(event: MouseEvent) => this.#pick(i, keys && event.altKey)}
            >
              ${this.#text(token.text)}
            </button>`,
        )}
      </div>
      <p class="note">
        ${source ? html`<span>source: ${source.tokens.length} tokens</span>` : nothing}<span
          >${trace.n_prompt} read, ${trace.tokens.length - trace.n_prompt} written</span
        >
        <span><span class="sample q">query</span> ${here.query}</span
        >${keys ? html`<span><span class="sample k">key</span> ${here.key}</span>` : nothing}
        ${
          view?.arrows
            ? html`<span
                >arrows:
                ${keys ? "key, query" : "query"}${
                  view.arrows.includes("layer")
                    ? html` · with shift: ${view.arrows.includes("head") ? "head, " : ""}block`
                    : nothing
                }</span
              >`
            : nothing
        }${
          view?.steps && !(view.id === "alignment" && session.anatomy?.kind === "recurrent")
            ? html`<span><kbd>,</kbd> and <kbd>.</kbd>: ${view.steps}</span>`
            : nothing
        }
      </p>
      ${
        trace.finish === "nan"
          ? html`<p class="nan" role="alert">
              <b>It stopped: its scores are no numbers any more (NaN).</b>
              ${
                trace.edits.length
                  ? "Under these edits something grew beyond what a float can hold: take one back."
                  : "Its weights, or what they are stored as, cannot hold what it computes here."
              }
            </p>`
          : nothing
      }`;
  }

  /** The token that is looked at stays in sight, without moving the page. */
  override updated(): void {
    const row = this.renderRoot.querySelector<HTMLElement>(".tokens"),
      one = row?.querySelector<HTMLElement>(".query");
    if (!row || !one) return;
    const top = one.offsetTop - row.offsetTop;
    if (top < row.scrollTop || top + one.offsetHeight > row.scrollTop + row.clientHeight)
      row.scrollTop = top - row.clientHeight / 2;
  }

  #text(text: string) {
    return [...visible(text)].map((c) => ("·⏎⇥␍".includes(c) ? html`<span class="blank">${c}</span>` : c));
  }

  #pick(i: number, asKey: boolean): void {
    this.session.go(asKey ? { key: i } : { query: i });
  }
}
