/** Alignment view: attention from target tokens to source tokens, for encoder-decoder and recurrent models. */
import { css, html, nothing } from "lit";
import { customElement, state } from "lit/decorators.js";
import "../components/alignment_matrix.js";
import "../components/bars.js";
import "../components/causal_test.js";
import "../components/formula.js";
import "../components/receipt.js";
import "../components/notice.js";
import "../components/strip.js";
import "../components/head_picker.js";
import "../components/attention_steps.js";
import { Resource } from "../resource.js";
import { num, percent, short } from "../lib/number.js";
import { topIndices, type Tensor } from "../lib/tensor.js";
import type { Pick } from "../components/matrix.js";
import { inlineToken } from "../components/token.js";
import type { Alignment, Attention, Cell, TraceInfo } from "../api_types.js";
import { ApiError } from "../transport.js";
import { SessionElement } from "../view.js";

const MAX_BARS = 8; // source tokens in the bar chart
const AVERAGES = { mean: "mean of all heads", block: "mean of one block", head: "one head" } as const;

type Average = keyof typeof AVERAGES;
type Comparison = { model: string; aligned: Alignment | null; refused: string };

@customElement("gf-view-alignment")
export class AlignmentView extends SessionElement {
  @state() private comparisons: Comparison[] = [];
  #comparedTrace = ""; // id of the compared trace
  #aligned = new Resource<Alignment>(this, () => {
    const { layer, head } = this.session.cursor,
      of = this.#average;
    return this.session.traceViewPath("alignment", of === "mean" ? {} : of === "block" ? { layer } : { layer, head });
  });
  #cell = new Resource<Cell>(this, () =>
    this.session.anatomy?.kind === "encoder-decoder"
      ? this.session.traceViewPath("cell", { ...this.#selection(), attention: this.#attention })
      : null,
  );
  #context = new Resource<Tensor>(
    this,
    () =>
      this.#recurrent ? this.session.tensorPath("rnn.context", { slice: `${this.session.cursor.query},:` }) : null,
    "tensor",
  );
  #state = new Resource<Tensor>(
    this,
    () => (this.#recurrent ? this.session.tensorPath("rnn.states", { slice: `${this.session.cursor.key},:` }) : null),
    "tensor",
  );

  static override styles = [
    SessionElement.styles,
    css`
      .top {
        display: grid;
        grid-template-columns: minmax(0, auto) minmax(13rem, 1fr);
        gap: 1.75rem;
        align-items: start;
      }
      .side {
        display: grid;
        gap: 0.7rem;
      }
      .stacks {
        display: grid;
        grid-template-columns: 1fr auto 1fr;
        gap: 0 0.8rem;
        align-items: stretch;
        max-width: 40rem;
        margin-top: 0.6rem;
      }
      .stack-of {
        display: flex;
        flex-direction: column-reverse;
        justify-content: flex-start;
        gap: 4px;
        border-left: 3px solid var(--residual);
        padding-left: 0.6rem;
      }
      .one {
        display: flex;
        flex-wrap: wrap;
        gap: 3px;
        align-items: center;
        font-size: 0.74rem;
        color: var(--soft);
      }
      .one span {
        width: 1.1rem;
      }
      .one button {
        flex: 1 0 auto;
        padding: 0.2rem 0.3rem;
        font-size: 0.74rem;
      }
      .a {
        border-left: 3px solid var(--query);
      }
      .c {
        border-left: 3px solid var(--key);
      }
      .between {
        display: grid;
        align-content: center;
        text-align: center;
        font-size: 0.76rem;
        color: var(--key);
        max-width: 8rem;
      }
      .between b {
        font-size: 1.4rem;
        font-weight: 400;
        line-height: 1;
      }
      .foot {
        font-size: 0.76rem;
        color: var(--soft);
      }
      .several {
        display: flex;
        flex-wrap: wrap;
        gap: 1.5rem 2rem;
        align-items: start;
      }
      .several > div {
        display: grid;
        gap: 0.5rem;
      }
      .strips {
        display: grid;
        grid-template-columns: 6.5rem minmax(0, 1fr);
        gap: 0.3rem 0.8rem;
        align-items: center;
        font-size: 0.8rem;
      }
      @media (max-width: 900px) {
        .top {
          grid-template-columns: minmax(0, 1fr);
        }
      }
      @media (max-width: 720px) {
        .stacks {
          gap: 0 0.4rem;
        }
        .between {
          max-width: 4.5rem;
        }
      }
    `,
  ];

  get #recurrent(): boolean {
    return this.session.anatomy?.kind === "recurrent" && this.#aligned.error === null;
  }

  get #average(): Average {
    const of = this.session.address.options["average"];
    return this.session.anatomy?.kind === "encoder-decoder" && (of === "block" || of === "head") ? of : "mean";
  }

  get #attention(): Attention {
    const of = this.session.address.options["attention"];
    return of === "attn" || of === "encoder" ? of : "cross";
  }

  /** The selection, limited to the size of the selected attention. */
  #selection() {
    const { cursor, tokens, trace, anatomy } = this.session,
      source = trace?.source?.tokens.length ?? 1;
    const queries = this.#attention === "encoder" ? source : tokens.length,
      keys = this.#attention === "attn" ? tokens.length : source;
    const stack = this.#attention === "encoder" ? anatomy?.encoder : anatomy?.layers,
      layer = Math.min(cursor.layer, (stack?.length ?? 1) - 1);
    return {
      layer,
      head: Math.min(cursor.head, (stack?.[layer]?.n_heads ?? 1) - 1),
      query: Math.min(cursor.query, queries - 1),
      key: Math.min(cursor.key, keys - 1),
    };
  }

  override render() {
    const { session } = this,
      { anatomy, trace } = session,
      aligned = this.#aligned.value,
      error = this.#aligned.error;
    if (!anatomy || !trace?.source || !trace.target) return nothing;
    const encoderDecoder = anatomy.kind === "encoder-decoder";
    return html`<section class="stack">
      <div class="title">
        <h2>Alignment of target and source</h2>
        ${encoderDecoder ? html`<gf-head-picker .session=${session}></gf-head-picker>` : nothing}
      </div>
      ${
        encoderDecoder
          ? html`<div class="row" role="group" aria-label="Average over">
              ${(Object.keys(AVERAGES) as Average[]).map(
                (of) =>
                  html`<button
                    aria-pressed=${of === this.#average}
                    @click=${() => session.setOptions({ average: of === "mean" ? null : of })}
                  >
                    ${AVERAGES[of]}
                  </button>`,
              )}
            </div>`
          : nothing
      }
      ${
        error
          ? html`<gf-notice heading="No alignment" reason=${error.message}
              ><p class="small">
                The decoder starts from the last encoder state only: source ${inlineToken(trace.source.text)}, target
                ${inlineToken(trace.target.text)}.
              </p></gf-notice
            >`
          : nothing
      }
      ${
        error || !aligned
          ? nothing
          : html`${this.#alignmentMatrix(aligned)}${encoderDecoder ? this.#stacks(trace) : this.#contextVector(aligned)}
              <gf-receipt .of=${aligned.receipt}></gf-receipt>`
      }
      ${encoderDecoder && !error ? this.#computation(trace) : nothing} ${this.#otherModels(trace)}
    </section>`;
  }

  #alignmentMatrix(aligned: Alignment) {
    const { session } = this,
      { query, key } = session.cursor,
      row = aligned.probs[query]?.map(num) ?? [];
    const order = topIndices(row, MAX_BARS, key);
    return html`<div class="top">
      <gf-alignment-matrix
        .of=${aligned}
        .row=${query}
        .column=${key}
        @pick=${({ detail }: CustomEvent<Pick>) => session.navigate({ query: detail.row, key: detail.column })}
      ></gf-alignment-matrix>
      <div class="side">
        <h3>Attention when predicting ${inlineToken(aligned.target[query]?.text)}</h3>
        <gf-bars
          pick
          tokens
          meaning="key"
          top="1"
          label="Attention weights of the source tokens"
          .bars=${order.map((i) => ({
            index: i,
            label: aligned.source[i]?.text ?? "",
            value: row[i] as number,
            chosen: i === key,
          }))}
          @pick=${(event: CustomEvent<number>) => session.navigate({ key: order[event.detail] ?? 0 })}
        ></gf-bars>
        <p class="small soft">Each row is a target token; its attention weights over the source tokens sum to 1.</p>
      </div>
    </div>`;
  }

  /** Diagram of the encoder and decoder stacks. */
  #stacks(trace: TraceInfo) {
    const { session } = this,
      { anatomy, cursor } = session;
    const blockButton = (attention: Attention, layer: number, text: string, style: string) =>
      html`<button
        class=${style}
        aria-pressed=${this.#attention === attention && cursor.layer === layer}
        aria-label="${text}, block ${layer} of the ${attention === "encoder" ? "encoder" : "decoder"}"
        @click=${() => {
          session.setOptions({ attention: attention === "cross" ? null : attention });
          session.navigate({ layer });
        }}
      >
        ${text}
      </button>`;
    return html`<div>
      <h3>Encoder, decoder and cross-attention</h3>
      <div class="stacks">
        <div class="stack-of">
          <span class="foot">${inlineToken(trace.source?.text)}</span>${anatomy?.encoder.map(
            (_, i) => html`<div class="one"><span>${i}</span>${blockButton("encoder", i, "self", "a")}</div>`,
          )}<span class="foot">encoder: ${anatomy?.encoder.length} blocks, bidirectional attention</span>
        </div>
        <div class="between"><b aria-hidden="true">→</b>keys and values of the source</div>
        <div class="stack-of">
          <span class="foot">${inlineToken(trace.target?.text)}</span>${anatomy?.layers.map(
            (_, i) =>
              html`<div class="one">
                <span>${i}</span>${blockButton("attn", i, "self", "a")}${blockButton("cross", i, "cross", "c")}
              </div>`,
          )}<span class="foot"
            >decoder: ${anatomy?.layers.length} blocks, causal self-attention, then cross-attention</span
          >
        </div>
      </div>
    </div>`;
  }

  #computation(trace: TraceInfo) {
    const { session } = this,
      cell = this.#cell.value,
      error = this.#cell.error,
      source = trace.source?.tokens ?? [];
    if (error) return html`<gf-notice reason=${error.message}></gf-notice>`;
    if (!cell) return nothing;
    const encoder = cell.attention === "encoder",
      queries = encoder ? source : session.tokens,
      keys = cell.attention === "attn" ? session.tokens : source;
    const title = {
      cross: "Cross-attention",
      attn: "Decoder self-attention",
      encoder: "Encoder self-attention",
    }[cell.attention];
    return html`<h3>${title}, step by step: block ${cell.layer}, head ${cell.head}</h3>
      <p class="small">
        The query of ${inlineToken(queries[cell.query]?.text)} gives ${inlineToken(keys[cell.key]?.text)} an attention
        weight of ${percent(cell.prob)}.
      </p>
      <gf-attention-steps .session=${session} .cell=${cell} .queries=${queries} .keys=${keys}></gf-attention-steps>
      <gf-receipt .of=${cell.receipt}></gf-receipt>
      ${
        cell.visible
          ? this.#cause(
              `${encoder ? "encoder." : ""}blocks.${cell.layer}.${encoder ? "attn" : cell.attention}.scores`,
              cell,
            )
          : nothing
      }`;
  }

  /** Causal test that masks the selected key. */
  #cause(point: string, cell: { head?: number; query: number; key: number }) {
    const { head, query, key } = cell;
    return html`<gf-causal-test
      .session=${this.session}
      label="Mask key ${key} for query ${query}"
      .edit=${{ op: "knockout", point, ...(head === undefined ? {} : { head }), query, key }}
    ></gf-causal-test>`;
  }

  /** Recurrent models: the context vector as the weighted sum of encoder states. */
  #contextVector(aligned: Alignment) {
    const { query, key } = this.session.cursor,
      context = this.#context.value,
      one = this.#state.value,
      share = num(aligned.probs[query]?.[key] ?? 0);
    if (!context || !one) return nothing;
    const weighted = one.data.map((x) => share * x);
    const top = Math.max(...Array.from(one.data, Math.abs), ...Array.from(context.data, Math.abs));
    return html`<div class="side">
      <h3>Context vector: weighted sum of the encoder states</h3>
      <gf-formula>context = Σ αⱼ hⱼ</gf-formula>
      <div class="strips">
        <span>state of ${inlineToken(aligned.source[key]?.text)}</span
        ><gf-strip quiet .data=${one.data} .top=${top} meaning="value" label="state"></gf-strip>
        <span>${percent(share)} of it</span
        ><gf-strip quiet .data=${weighted} .top=${top} meaning="value" label="weighted state"></gf-strip>
        <span>sum over states</span
        ><gf-strip quiet .data=${context.data} .top=${top} meaning="value" label="context"></gf-strip>
      </div>
      <p class="small">
        [0]: <span class="num">${percent(share)} × ${short(one.data[0] ?? 0)} = ${short(weighted[0] ?? 0)}</span>;
        summed over all states
        <span class="num">context[0] = ${short(context.data[0] ?? 0)}</span>
      </p>
      <gf-receipt
        .of=${{ python: `t["rnn.context"][${query}]`, identity: context.identity, error: context.error }}
      ></gf-receipt>
      ${this.#cause("rnn.scores", { query, key })}
    </div>`;
  }

  #otherModels(trace: TraceInfo) {
    const { session } = this,
      others = session.models.filter(
        (model) => model !== session.model && ["encoder-decoder", "recurrent"].includes(session.kinds[model] ?? ""),
      );
    if (!others.length) return nothing;
    const shown = this.#comparedTrace === trace.id ? this.comparisons : [];
    return html`<div class="stack">
      <h3>Comparison with other models</h3>
      ${
        shown.length
          ? html`<div class="several">
              ${shown.map(
                (one) =>
                  html`<div>
                    <span><b>${one.model}</b> <span class="small soft">${session.kinds[one.model]}</span></span>
                    ${
                      one.aligned
                        ? html`<gf-alignment-matrix
                            small
                            .of=${one.aligned}
                            .row=${Math.min(session.cursor.query, one.aligned.target.length - 1)}
                            .column=${-1}
                          ></gf-alignment-matrix>`
                        : html`<gf-notice heading="No alignment" reason=${one.refused}></gf-notice>`
                    }
                  </div>`,
              )}
            </div>`
          : html`<p>
              <button @click=${() => void this.#compare(trace, others)}>Compare with ${others.join(", ")}</button>
            </p>`
      }
    </div>`;
  }

  async #compare(trace: TraceInfo, others: string[]): Promise<void> {
    const { session } = this;
    this.#comparedTrace = trace.id;
    this.comparisons = await Promise.all(
      others.map(async (model): Promise<Comparison> => {
        try {
          const made = await session.transport.post<TraceInfo>("/v1/traces", {
            model,
            prompt: session.address.text,
            target: trace.target?.text ?? "",
          });
          return {
            model,
            aligned: await session.fetch<Alignment>(`/v1/traces/${made.id}/views/alignment`),
            refused: "",
          };
        } catch (error) {
          return { model, aligned: null, refused: error instanceof ApiError ? error.message : String(error) };
        }
      }),
    );
  }
}
