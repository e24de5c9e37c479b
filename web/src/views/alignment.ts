/** View 14. What each written token looked at in the source: encoder, decoder, and the attention between them; or a recurrent model's. */
import { css, html, nothing } from "lit";
import { customElement, state } from "lit/decorators.js";
import "../parts/aligned.js";
import "../parts/bars.js";
import "../parts/cause.js";
import "../parts/formula.js";
import "../parts/receipt.js";
import "../parts/refused.js";
import "../parts/strip.js";
import "../parts/where.js";
import "../parts/worked.js";
import { Ask } from "../ask.js";
import { num, percent, short } from "../lib/number.js";
import type { Tensor } from "../lib/tensor.js";
import type { Pick } from "../parts/matrix.js";
import { quoted } from "../parts/token.js";
import type { Aligned, Attention, Cell, TraceInfo } from "../shapes.js";
import { Refused } from "../transport.js";
import { Follower } from "../view.js";

const SHOWN = 8; // source tokens beside the picture
const OF = { mean: "mean of all heads", block: "mean of the block", head: "one head" } as const;

type Of = keyof typeof OF;
type Beside = { model: string; aligned: Aligned | null; refused: string };

@customElement("gf-view-alignment")
export class AlignmentView extends Follower {
  @state() private beside: Beside[] = [];
  #beside = ""; // of which pair
  #aligned = new Ask<Aligned>(this, () => {
    const { layer, head } = this.session.here,
      of = this.#of;
    return this.session.ofTrace("alignment", of === "mean" ? {} : of === "block" ? { layer } : { layer, head });
  });
  #cell = new Ask<Cell>(this, () =>
    this.session.anatomy?.kind === "encoder-decoder"
      ? this.session.ofTrace("cell", { ...this.#asked(), attention: this.#attention })
      : null,
  );
  #context = new Ask<Tensor>(
    this,
    () => (this.#recurrent ? this.session.tensor("rnn.context", { slice: `${this.session.here.query},:` }) : null),
    "tensor",
  );
  #state = new Ask<Tensor>(
    this,
    () => (this.#recurrent ? this.session.tensor("rnn.states", { slice: `${this.session.here.key},:` }) : null),
    "tensor",
  );

  static override styles = [
    Follower.styles,
    css`
      .title {
        display: flex;
        flex-wrap: wrap;
        gap: 0.4rem 1.4rem;
        align-items: baseline;
        justify-content: space-between;
      }
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

  get #of(): Of {
    const of = this.session.place.more["of"];
    return this.session.anatomy?.kind === "encoder-decoder" && (of === "block" || of === "head") ? of : "mean";
  }

  get #attention(): Attention {
    const of = this.session.place.more["attention"];
    return of === "attn" || of === "encoder" ? of : "cross";
  }

  /** The cell's place, within the encoder's or the decoder's own size where that is what is looked at. */
  #asked() {
    const { here, tokens, trace, anatomy } = this.session,
      source = trace?.source?.tokens.length ?? 1;
    const queries = this.#attention === "encoder" ? source : tokens.length,
      keys = this.#attention === "attn" ? tokens.length : source;
    const stack = this.#attention === "encoder" ? anatomy?.encoder : anatomy?.layers,
      layer = Math.min(here.layer, (stack?.length ?? 1) - 1);
    return {
      layer,
      head: Math.min(here.head, (stack?.[layer]?.n_heads ?? 1) - 1),
      query: Math.min(here.query, queries - 1),
      key: Math.min(here.key, keys - 1),
    };
  }

  override render() {
    const { session } = this,
      { anatomy, trace } = session,
      aligned = this.#aligned.value,
      error = this.#aligned.error;
    if (!anatomy || !trace?.source || !trace.target) return nothing;
    const pair = anatomy.kind === "encoder-decoder";
    return html`<section class="stack">
      <div class="title">
        <h2>What each written token looked at</h2>
        ${pair ? html`<gf-where .session=${session}></gf-where>` : nothing}
      </div>
      ${
        pair
          ? html`<div class="row" role="group" aria-label="Whose shares">
              ${(Object.keys(OF) as Of[]).map(
                (of) =>
                  html`<button
                    aria-pressed=${of === this.#of}
                    @click=${() => session.more({ of: of === "mean" ? null : of })}
                  >
                    ${OF[of]}
                  </button>`,
              )}
            </div>`
          : nothing
      }
      ${
        error
          ? html`<gf-refused heading="Nothing to align" reason=${error.message}
              ><p class="small">
                The source's last state is all that the decoder starts from: ${quoted(trace.source.text)} has become
                ${quoted(trace.target.text)} through it alone.
              </p></gf-refused
            >`
          : nothing
      }
      ${
        error || !aligned
          ? nothing
          : html`${this.#picture(aligned)}${pair ? this.#stacks(trace) : this.#weighed(aligned)}
              <gf-receipt .of=${aligned.receipt}></gf-receipt>`
      }
      ${pair && !error ? this.#worked(trace) : nothing} ${this.#others(trace)}
    </section>`;
  }

  #picture(aligned: Aligned) {
    const { session } = this,
      { query, key } = session.here,
      row = aligned.probs[query]?.map(num) ?? [];
    const order = row
      .map((_, i) => i)
      .sort((a, b) => (row[b] as number) - (row[a] as number))
      .slice(0, SHOWN);
    if (!order.includes(key) && key < row.length) order.splice(SHOWN - 1, 1, key);
    order.sort((a, b) => a - b);
    return html`<div class="top">
      <gf-aligned
        .of=${aligned}
        .row=${query}
        .column=${key}
        @pick=${({ detail }: CustomEvent<Pick>) => session.go({ query: detail.row, key: detail.column })}
      ></gf-aligned>
      <div class="side">
        <h3>To write ${quoted(aligned.target[query]?.text)} it took</h3>
        <gf-bars
          pick
          tokens
          meaning="key"
          top="1"
          label="Shares of the source's tokens"
          .bars=${order.map((i) => ({
            index: i,
            label: aligned.source[i]?.text ?? "",
            value: row[i] as number,
            chosen: i === key,
          }))}
          @pick=${(event: CustomEvent<number>) => session.go({ key: order[event.detail] ?? 0 })}
        ></gf-bars>
        <p class="small soft">Each row is a token of the target, and its shares of the source add up to 1.</p>
      </div>
    </div>`;
  }

  /** The two stacks, and what goes between them. */
  #stacks(trace: TraceInfo) {
    const { session } = this,
      { anatomy, here } = session;
    const door = (attention: Attention, layer: number, text: string, style: string) =>
      html`<button
        class=${style}
        aria-pressed=${this.#attention === attention && here.layer === layer}
        aria-label="${text}, block ${layer} of the ${attention === "encoder" ? "encoder" : "decoder"}"
        @click=${() => {
          session.more({ attention: attention === "cross" ? null : attention });
          session.go({ layer });
        }}
      >
        ${text}
      </button>`;
    return html`<div>
      <h3>Two stacks, and the way between them</h3>
      <div class="stacks">
        <div class="stack-of">
          <span class="foot">${quoted(trace.source?.text)}</span>${anatomy?.encoder.map(
            (_, i) => html`<div class="one"><span>${i}</span>${door("encoder", i, "self", "a")}</div>`,
          )}<span class="foot">encoder: ${anatomy?.encoder.length} blocks, each token sees all</span>
        </div>
        <div class="between"><b aria-hidden="true">→</b>keys and values of the source, for every block</div>
        <div class="stack-of">
          <span class="foot">${quoted(trace.target?.text)}</span>${anatomy?.layers.map(
            (_, i) =>
              html`<div class="one">
                <span>${i}</span>${door("attn", i, "self", "a")}${door("cross", i, "cross", "c")}
              </div>`,
          )}<span class="foot">decoder: ${anatomy?.layers.length} blocks, each looks back, then across</span>
        </div>
      </div>
    </div>`;
  }

  #worked(trace: TraceInfo) {
    const { session } = this,
      cell = this.#cell.value,
      error = this.#cell.error,
      source = trace.source?.tokens ?? [];
    if (error) return html`<gf-refused reason=${error.message}></gf-refused>`;
    if (!cell) return nothing;
    const encoder = cell.attention === "encoder",
      queries = encoder ? source : session.tokens,
      keys = cell.attention === "attn" ? session.tokens : source;
    const what = {
      cross: "Attention to the source",
      attn: "The decoder's attention to itself",
      encoder: "The encoder's attention",
    }[cell.attention];
    return html`<h3>${what}, worked out: block ${cell.layer}, head ${cell.head}</h3>
      <p class="small">
        ${quoted(queries[cell.query]?.text)}
        asks${cell.attention === "cross" ? html` for what is to follow it` : nothing}; ${quoted(keys[cell.key]?.text)}
        answers with ${percent(cell.prob)}.
      </p>
      <gf-worked .session=${session} .cell=${cell} .queries=${queries} .keys=${keys}></gf-worked>
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

  /** The same text without this one look. */
  #cause(point: string, cell: { head?: number; query: number; key: number }) {
    const { head, query, key } = cell;
    return html`<gf-cause
      .session=${this.session}
      label="Hide key ${key} from query ${query} here, and write anew"
      .edit=${{ op: "knockout", point, ...(head === undefined ? {} : { head }), query, key }}
    ></gf-cause>`;
  }

  /** A recurrent model: the context is the states, each as much as its share. */
  #weighed(aligned: Aligned) {
    const { query, key } = this.session.here,
      context = this.#context.value,
      one = this.#state.value,
      share = num(aligned.probs[query]?.[key] ?? 0);
    if (!context || !one) return nothing;
    const weighted = one.data.map((x) => share * x);
    const top = Math.max(...Array.from(one.data, Math.abs), ...Array.from(context.data, Math.abs));
    return html`<div class="side">
      <h3>The context: every state, as much as its share</h3>
      <gf-formula>context = Σ αⱼ hⱼ</gf-formula>
      <div class="strips">
        <span>state of ${quoted(aligned.source[key]?.text)}</span
        ><gf-strip quiet .data=${one.data} .top=${top} meaning="value" label="state"></gf-strip>
        <span>${percent(share)} of it</span
        ><gf-strip quiet .data=${weighted} .top=${top} meaning="value" label="weighted state"></gf-strip>
        <span>all states'</span
        ><gf-strip quiet .data=${context.data} .top=${top} meaning="value" label="context"></gf-strip>
      </div>
      <p class="small">
        [0]: <span class="num">${percent(share)} × ${short(one.data[0] ?? 0)} = ${short(weighted[0] ?? 0)}</span>, and
        with all other states' <span class="num">context[0] = ${short(context.data[0] ?? 0)}</span>
      </p>
      <gf-receipt
        .of=${{ python: `t["rnn.context"][${query}]`, identity: context.identity, error: context.error }}
      ></gf-receipt>
      ${this.#cause("rnn.scores", { query, key })}
    </div>`;
  }

  #others(trace: TraceInfo) {
    const { session } = this,
      others = session.models.filter(
        (model) => model !== session.model && ["encoder-decoder", "recurrent"].includes(session.kinds[model] ?? ""),
      );
    if (!others.length) return nothing;
    const shown = this.#beside === trace.id ? this.beside : [];
    return html`<div class="stack">
      <h3>The same pair through other models</h3>
      ${
        shown.length
          ? html`<div class="several">
              ${shown.map(
                (one) =>
                  html`<div>
                    <span><b>${one.model}</b> <span class="small soft">${session.kinds[one.model]}</span></span>
                    ${
                      one.aligned
                        ? html`<gf-aligned
                            small
                            .of=${one.aligned}
                            .row=${Math.min(session.here.query, one.aligned.target.length - 1)}
                            .column=${-1}
                          ></gf-aligned>`
                        : html`<gf-refused heading="Nothing to align" reason=${one.refused}></gf-refused>`
                    }
                  </div>`,
              )}
            </div>`
          : html`<p>
              <button @click=${() => void this.#compare(trace, others)}>Read it with ${others.join(", ")}</button>
            </p>`
      }
    </div>`;
  }

  async #compare(trace: TraceInfo, others: string[]): Promise<void> {
    const { session } = this;
    this.#beside = trace.id;
    this.beside = await Promise.all(
      others.map(async (model): Promise<Beside> => {
        try {
          const made = await session.transport.post<TraceInfo>("/v1/traces", {
            model,
            prompt: session.place.text,
            target: trace.target?.text ?? "",
          });
          return { model, aligned: await session.ask<Aligned>(`/v1/traces/${made.id}/views/alignment`), refused: "" };
        } catch (error) {
          return { model, aligned: null, refused: error instanceof Refused ? error.message : String(error) };
        }
      }),
    );
  }
}
