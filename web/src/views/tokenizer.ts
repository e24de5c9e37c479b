/** Tokenizer view: tokens with ids, bytes and offsets, and the BPE merges of a word. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "../components/receipt.js";
import "../components/notice.js";
import "../components/stepper.js";
import { Resource } from "../resource.js";
import { count } from "../lib/number.js";
import { visibleText } from "../components/token.js";
import type { Merges, Tokens } from "../api_types.js";
import { SessionElement } from "../view.js";

@customElement("gf-view-tokenizer")
export class TokenizerView extends SessionElement {
  #tokens = new Resource<Tokens>(this, () => this.session.modelViewPath("tokens", { text: this.#text }));
  #otherTokens = new Resource<Tokens>(this, () =>
    this.#otherModel
      ? `/v1/models/${encodeURIComponent(this.#otherModel)}/views/tokens?${new URLSearchParams({ text: this.#text })}`
      : null,
  );
  #merges = new Resource<Merges>(this, () =>
    this.#word ? this.session.modelViewPath("merges", { word: this.#word }) : null,
  );

  static override styles = [
    SessionElement.styles,
    css`
      textarea {
        width: 100%;
        font-size: 0.95rem;
        line-height: 1.5;
      }
      .cut {
        font-size: 1.02rem;
        line-height: 2.15;
        overflow-wrap: anywhere;
      }
      .cut span {
        display: inline-block;
        border-radius: 4px;
        padding: 0.12rem 0.1rem;
        margin-right: 2px;
        white-space: pre-wrap;
        border-bottom: 2px solid var(--residual);
      }
      .cut span:nth-child(even) {
        background: var(--wash);
      }
      table {
        border-collapse: collapse;
        font-size: 0.84rem;
      }
      .wrap {
        overflow: auto;
        max-height: 20rem;
      }
      th,
      td {
        text-align: left;
        padding: 0.2rem 1.4rem 0.2rem 0;
        border-bottom: 1px solid var(--line);
        font-weight: 400;
        white-space: nowrap;
      }
      thead th {
        color: var(--soft);
        font-size: 0.76rem;
        position: sticky;
        top: 0;
        background: var(--paper);
      }
      .tree {
        display: grid;
        gap: 0.4rem;
      }
      .tree li {
        display: flex;
        gap: 0.3rem;
        align-items: center;
        flex-wrap: wrap;
      }
      .piece {
        border: 1px solid var(--line);
        background: var(--card);
        border-radius: 5px;
        padding: 0.08rem 0.42rem;
      }
      .piece.new {
        border-color: var(--residual);
        border-width: 2px;
        font-weight: 650;
      }
      .tree small {
        color: var(--soft);
        margin-left: 0.6rem;
      }
      .row label {
        font-size: 0.86rem;
      }
    `,
  ];

  get #text(): string {
    return this.session.address.options["tokenize"] ?? this.session.address.text;
  }

  /** The name of another model whose tokenizer is compared, or "". */
  get #otherModel(): string {
    const { session } = this,
      option = session.address.options["other_model"] ?? "";
    return session.models.includes(option) && option !== session.model ? option : "";
  }

  /** The word whose merges are shown; by default the longest word of the text. */
  get #word(): string {
    const option = this.session.address.options["word"];
    if (option !== undefined) return option;
    return this.#text.match(/ ?\p{L}+/gu)?.reduce((a, b) => (b.trim().length > a.trim().length ? b : a), "") ?? "";
  }

  override render() {
    const tokens = this.#tokens.value,
      error = this.#tokens.error;
    return html`<section class="stack">
      <h2>Tokenizer</h2>
      <textarea
        rows="2"
        ?readonly=${!this.session.live}
        aria-label="Text to tokenize"
        spellcheck="false"
        .value=${this.#text}
        @input=${(event: Event) => this.session.setOptions({ tokenize: (event.target as HTMLTextAreaElement).value })}
      ></textarea>
      ${error ? html`<gf-notice reason=${error.message}></gf-notice>` : nothing}
      ${
        tokens && !error
          ? html`<p class="soft small">
                ${count(tokens.n_bytes)} bytes, ${count(tokens.tokens.length)} tokens,
                ${(tokens.n_bytes / Math.max(1, tokens.tokens.length)).toFixed(2)} bytes per token; vocabulary size
                ${count(tokens.vocab_size)}.
              </p>
              <p class="cut">
                ${tokens.tokens.map(
                  (token) =>
                    html`<span title="id ${token.id}, bytes ${token.bytes}"
                      >${token.text === "" ? visibleText("") : token.text.replace(/\n/g, "⏎")}</span
                    >`,
                )}
              </p>
              ${this.#comparison()}
              <div class="wrap" tabindex="0" role="region" aria-label="All tokens">
                <table>
                  <thead>
                    <tr>
                      <th>token</th>
                      <th>id</th>
                      <th>bytes</th>
                      <th>characters</th>
                    </tr>
                  </thead>
                  <tbody>
                    ${tokens.tokens.map(
                      (token) =>
                        html`<tr>
                          <td class="num">${visibleText(token.text)}</td>
                          <td class="num">${token.id}</td>
                          <td class="num soft">${token.bytes.replace(/(..)(?=.)/g, "$1 ")}</td>
                          <td class="num soft">
                            ${
                              token.special
                                ? "special token"
                                : token.end > token.start
                                  ? `${token.start}–${token.end}`
                                  : "none"
                            }
                          </td>
                        </tr>`,
                    )}
                  </tbody>
                </table>
              </div>
              <gf-receipt .of=${tokens.receipt}></gf-receipt>`
          : nothing
      }
      ${this.#mergeSteps()}
    </section>`;
  }

  #comparison() {
    const { session } = this,
      others = session.models.filter((name) => name !== session.model),
      tokens = this.#otherTokens.value;
    if (!others.length) return nothing;
    return html`<div class="row small">
        <label
          >compare with the tokenizer of
          <select
            @change=${(event: Event) =>
              session.setOptions({ other_model: (event.target as HTMLSelectElement).value || null })}
          >
            <option value="">none</option>
            ${others.map((name) => html`<option value=${name} .selected=${name === this.#otherModel}>${name}</option>`)}
          </select></label
        >
      </div>
      ${
        this.#otherTokens.error && this.#otherModel
          ? html`<gf-notice reason=${this.#otherTokens.error.message}></gf-notice>`
          : nothing
      }
      ${
        tokens && this.#otherModel
          ? html`<p class="soft small">
                ${count(tokens.tokens.length)} tokens; vocabulary size ${count(tokens.vocab_size)}:
              </p>
              <p class="cut second">
                ${tokens.tokens.map(
                  (token) =>
                    html`<span title="id ${token.id}, bytes ${token.bytes}"
                      >${token.text === "" ? visibleText("") : token.text.replace(/\n/g, "⏎")}</span
                    >`,
                )}
              </p>`
          : nothing
      }`;
  }

  /** The number of applied merges; all by default. */
  #step(merges: Merges): number {
    const option = Number(this.session.address.options["merge"] ?? NaN),
      last = merges.steps.length - 1;
    return Number.isInteger(option) ? Math.min(last, Math.max(0, option)) : last;
  }

  #mergeSteps() {
    const merges = this.#merges.value,
      error = this.#merges.error;
    return html`<div class="row">
        <h3>BPE merges of a word</h3>
        <label
          >word
          <input
            ?readonly=${!this.session.live}
            aria-label="Word whose merges are shown"
            spellcheck="false"
            .value=${this.#word}
            @input=${(event: Event) =>
              this.session.setOptions({ merge: null, word: (event.target as HTMLInputElement).value })}
        /></label>
      </div>
      ${error ? html`<gf-notice heading="No merges" reason=${error.message}></gf-notice>` : nothing}
      ${
        merges && !error
          ? html`<gf-stepper
                .session=${this.session}
                what="merge"
                .at=${this.#step(merges)}
                .n=${merges.steps.length}
                @step=${(event: CustomEvent<number>) =>
                  this.session.setOptions({
                    merge: event.detail === merges.steps.length - 1 ? null : String(event.detail),
                  })}
              >
                ${
                  this.#step(merges) === 0
                    ? "bytes"
                    : `after ${this.#step(merges)} of ${merges.steps.length - 1} merges`
                }</gf-stepper
              >
              <ol class="tree">
                ${merges.steps.slice(0, this.#step(merges) + 1).map(
                  (step, i) =>
                    html`<li>
                      ${step.parts.map(
                        (part, j) =>
                          html`<span class="piece num ${j === step.at ? "new" : ""}">${visibleText(part)}</span>`,
                      )}
                      <small>${i === 0 ? "bytes" : `merge ${step.rank}`}</small>
                    </li>`,
                )}
              </ol>
              ${
                this.#step(merges) === merges.steps.length - 1
                  ? html`<p class="small soft">Token ids: <span class="num">${merges.ids.join(", ")}</span></p>`
                  : nothing
              }
              <gf-receipt .of=${merges.receipt}></gf-receipt>`
          : nothing
      }`;
  }
}
