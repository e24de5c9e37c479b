/** Data flow of the model: follows one token through all stages. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "../components/bars.js";
import "../components/stepper.js";
import "../components/strip.js";
import { Resource } from "../resource.js";
import { count, num, short, type Num } from "../lib/number.js";
import type { Tensor } from "../lib/tensor.js";
import { inlineToken } from "../components/token.js";
import type { Anatomy, Block, Summary } from "../api_types.js";
import { SessionElement } from "../view.js";

@customElement("gf-flow")
export class Flow extends SessionElement {
  #block = new Resource<Block>(this, () =>
    this.#layer < 0
      ? null
      : this.session.traceViewPath("block", { layer: this.#layer, position: this.session.cursor.query, top: 0 }),
  );
  #row = new Resource<Tensor>(
    this,
    () =>
      this.#stage === 1
        ? this.session.tensorPath("embed.out", { slice: `${this.session.cursor.query},:`, dtype: "f32" })
        : null,
    "tensor",
  );
  #summary = new Resource<Summary>(this, () => this.session.traceViewPath("summary", {}));

  static override styles = [
    SessionElement.styles,
    css`
      .flow {
        display: flex;
        align-items: stretch;
        overflow-x: auto;
        padding: 0.3rem 2px 0.6rem;
        scrollbar-width: thin;
      }
      .stop {
        display: flex;
        align-items: center;
        flex: 0 1 auto;
      }
      .stop + .stop::before {
        content: "";
        width: 0.8rem;
        min-width: 0.4rem;
        height: 4px;
        background: var(--residual);
        flex: 1;
      }
      button.box {
        border-radius: 10px;
        padding: 0.55rem 0.5rem;
        text-align: center;
        height: 100%;
        min-height: 5.6rem;
        display: grid;
        align-content: center;
        gap: 0.1rem;
        white-space: nowrap;
      }
      button.box small {
        color: var(--soft);
        font-size: 0.7rem;
        display: block;
      }
      button.box[aria-pressed="true"] {
        background: var(--card);
        color: var(--ink);
        border-color: var(--residual);
        box-shadow: 0 0 0 2px var(--residual);
      }
      .layer {
        padding: 0.35rem 0.4rem !important;
        gap: 3px !important;
        min-width: 2.5rem;
      }
      .layer small {
        position: relative;
      }
      .layer i {
        font-style: normal;
        border-radius: 4px;
        font-size: 0.66rem;
        padding: 0.28rem 0.2rem;
        color: var(--card);
        display: block;
      }
      .layer i.a {
        background: var(--query);
      }
      .layer i.m {
        background: var(--forward);
      }
      .layer.open {
        min-width: 5.3rem;
      }
      .layer.open i {
        padding: 0.3rem 0.2rem;
        font-size: 0.68rem;
      }
      .card {
        border-left: 4px solid var(--residual);
        padding: 0.2rem 0 0.2rem 1rem;
        display: grid;
        gap: 0.6rem;
        min-height: 7.2rem;
        align-content: start;
      }
    `,
  ];

  get #last(): number {
    return 2 + (this.session.anatomy?.layers.length ?? 0);
  }

  get #stage(): number {
    const option = Number(this.session.address.options["stage"] ?? 0);
    return Number.isInteger(option) ? Math.min(this.#last, Math.max(0, option)) : 0;
  }

  /** The current block; -1: none. */
  get #layer(): number {
    return this.#stage > 1 && this.#stage < this.#last ? this.#stage - 2 : -1;
  }

  override render() {
    const { anatomy } = this.session;
    if (!anatomy) return nothing;
    const stage = this.#stage,
      box = (at: number, name: string, ...notes: string[]) =>
        html`<div class="stop">
          <button class="box" aria-pressed=${at === stage} @click=${() => this.#go(at)}>
            ${name} ${notes.map((note) => html`<small>${note}</small>`)}
          </button>
        </div>`;
    return html`<div class="flow" tabindex="0" role="group" aria-label="The model, from left to right">
        ${box(0, "Tokenizer", "text → ids", `${count(anatomy.vocab_size)} tokens`)}
        ${box(1, "Embedding", "id → vector", `${count(anatomy.vocab_size)} × ${anatomy.d_model}`)}
        ${anatomy.layers.map(
          (layer, i) =>
            html`<div class="stop">
              <button
                class="box layer ${i === this.#layer || anatomy.layers.length < 5 ? "open" : ""}"
                aria-pressed=${i + 2 === stage}
                @click=${() => this.#go(i + 2)}
              >
                <small
                  >${
                    i === this.#layer || anatomy.layers.length < 5
                      ? `block ${i}`
                      : html`<span class="away">block </span>${i}`
                  }</small
                >
                <i class="a"
                  >${
                    i === this.#layer || anatomy.layers.length < 5 ? `${layer.n_heads} heads of ${layer.head_dim}` : "a"
                  }</i
                ><i class="m"
                  >${i === this.#layer || anatomy.layers.length < 5 ? `${count(layer.d_ff)} neurons` : "f"}</i
                >
              </button>
            </div>`,
        )}
        ${box(
          this.#last,
          "LM head",
          "norm, then logits",
          anatomy.tied ? "tied to embedding" : `${anatomy.d_model} × ${count(anatomy.vocab_size)}`,
        )}
      </div>
      <gf-stepper
        .session=${this.session}
        .at=${stage}
        .n=${this.#last + 1}
        @step=${(event: CustomEvent<number>) => this.#go(event.detail)}
        >follow ${inlineToken(this.session.tokens[this.session.cursor.query]?.text)} (token
        ${this.session.cursor.query})</gf-stepper
      >
      ${this.session.trace ? html`<div class="card">${this.#card(anatomy, stage)}</div>` : nothing}`;
  }

  #card(anatomy: Anatomy, stage: number) {
    const { session } = this,
      { query } = session.cursor,
      token = session.tokens[query];
    if (stage === 0)
      return html`<h3>The tokenizer splits the text</h3>
        <p class="small">
          ${inlineToken(token?.text)} is token ${query} of this text. Its id is <span class="num">${token?.id}</span> in
          a vocabulary of ${count(anatomy.vocab_size)} tokens.
        </p>`;
    if (stage === 1) {
      const row = this.#row.value;
      return html`<h3>The embedding maps the id to a vector</h3>
        <p class="small">
          Row <span class="num">${token?.id}</span> of the
          table${anatomy.positions && anatomy.positions !== "rotary" ? " plus the position embedding" : ""}:
          ${anatomy.d_model} values.
        </p>
        ${
          row
            ? html`<gf-strip .data=${row.data} meaning="residual" label="embedding of the token"
                >norm ${short(Math.hypot(...row.data))}</gf-strip
              >`
            : nothing
        }`;
    }
    if (stage === this.#last) return this.#end();
    const block = this.#block.value;
    if (this.#block.error) return html`<gf-notice reason=${this.#block.error.message}></gf-notice>`;
    if (!block) return nothing;
    return html`<h3>Block ${block.layer} adds two vectors</h3>
      <p class="small">
        <span class="q">Attention</span> adds a vector of norm ${short(block.norms["attn.add"] ?? 0)}, the
        <span class="f">feed-forward layer</span> one of norm ${short(block.norms["mlp.add"] ?? 0)}. The norm of the
        residual stream changes from ${short(block.norms["resid_pre"] ?? 0)} to
        ${short(block.norms["resid_post"] ?? 0)}.
      </p>
      <gf-strip .data=${block.resid_post} meaning="residual" label="residual stream after block ${block.layer}"
        >residual stream after the block</gf-strip
      >
      <div class="row">
        <button @click=${() => session.openView("cell", { layer: block.layer })}>open attention</button
        ><button @click=${() => session.openView("block", { layer: block.layer })}>open feed-forward layer</button>
      </div>`;
  }

  #end() {
    const { session } = this,
      summary = this.#summary.value,
      { query } = session.cursor;
    if (!summary) return nothing;
    const after = summary.tokens[query + 1],
      top = after ? after.top : summary.next,
      best = top[0];
    return html`<h3>The LM head maps the vector to next-token probabilities</h3>
      <gf-bars
        tokens
        top="1"
        label="Most likely next tokens"
        .bars=${top.map((one) => ({ label: one.text, value: one.value as Num, chosen: one.id === after?.id }))}
      ></gf-bars>
      ${
        after?.generated && best
          ? html`<p class="small">
              The model generated
              ${inlineToken(after.text)}${
                session.address.temperature === 0 && after.id === best.id
                  ? ", the most likely token (temperature 0)"
                  : ""
              }.
            </p>`
          : after
            ? html`<p class="small">
                The next token of the text is ${inlineToken(after.text)}, with probability
                ${short(num(after.prob ?? 0))}.
              </p>`
            : nothing
      }`;
  }

  #go(stage: number): void {
    this.session.setOptions({ stage: String(stage) });
  }
}
