/** The guided tour: short captions that explain each view with the values of the open trace. */
import { css, html, nothing, type TemplateResult } from "lit";
import { customElement, property } from "lit/decorators.js";
import { Resource } from "./resource.js";
import type { Edit } from "./lib/address.js";
import { compact, bytes, count, num, percent, short } from "./lib/number.js";
import { describeEdit } from "./lib/edit_text.js";
import { largestDivergence } from "./lib/divergence.js";
import { inlineToken } from "./components/token.js";
import type { Block, CacheView, Cell, Embedding, Fork, Heads, QKV, Summary, Tokens } from "./api_types.js";
import type { Session } from "./session.js";
import type { TOUR_VIEWS } from "./tour_views.js";
import { SessionElement } from "./view.js";

interface TourData {
  session: Session;
  cell: Cell | null;
  heads: Heads | null;
  block: Block | null;
  cache: CacheView | null;
  fork: Fork | null;
  qkv: QKV | null;
  summary: Summary | null;
  tokens: Tokens | null;
  embedding: Embedding | null;
}

interface TourStep {
  title: string;
  view: (typeof TOUR_VIEWS)[number];
  needs?: keyof Omit<TourData, "session">;
  render: (facts: TourData) => TemplateResult;
}

const token = (s: Session, i: number) => inlineToken(s.tokens[i]?.text);

export const TOUR: readonly TourStep[] = [
  {
    title: "Attention",
    view: "cell",
    needs: "cell",
    render: ({ session, cell }) =>
      html`<p>
          A language model generates one token at a time. Attention lets each token collect information from the tokens
          before it. Row ${cell?.query} of the heat map shows the attention weights of
          ${token(session, cell?.query ?? 0)} in head ${cell?.head} of block ${cell?.layer}: ${percent(cell?.prob ?? 0)}
          of its attention is on ${token(session, cell?.key ?? 0)}, token ${cell?.key}.
        </p>
        <p>
          Select any cell; a stronger colour means a larger
          weight.${session.whyThisHead ? html` Why this head: ${session.whyThisHead}.` : nothing}
        </p>`,
  },
  {
    title: "Query, key, value",
    view: "qkv",
    needs: "qkv",
    render: ({ session, qkv }) =>
      html`<p>
          Each head projects the vector x of ${token(session, qkv?.position ?? 0)}, which has ${qkv?.x.length}
          dimensions, to three vectors of ${qkv?.q.length} dimensions. The <span class="q">query</span> describes what
          the token searches for, the <span class="k">key</span> what it offers, and the
          <span class="v">value</span> what it passes on when another token attends to it.
        </p>
        <p>
          ${
            qkv?.products.q
              ? html`Each dimension is a sum of ${qkv.products.q.weights.length} products: query[${qkv.dim}] =
                ${short(qkv.products.q.value)} is ${qkv.products.q.of === "x" ? "x" : "a latent of x"} times row
                ${qkv.dim} of ${qkv.products.q.matrix}.`
              : nothing
          }
          The matrices are learned, and are the same for every token.
        </p>`,
  },
  {
    title: "The scaled dot product",
    view: "cell",
    needs: "cell",
    render: ({ cell }) =>
      html`<p>
          The dot product of <span class="q">query</span> and <span class="k">key</span> is a sum of ${cell?.q.length}
          products: ${short(cell?.sum ?? 0)}. Multiplied by the scale ${short(cell?.scale ?? 0)} it becomes the score
          ${short(cell?.scaled ?? 0)}. The softmax over the scores of all visible keys turns it into a weight of
          ${percent(cell?.prob ?? 0)}. Press the keys , and . to step through the computation.
        </p>
        <p>
          Select “without the scale”. The entropy of the weights changes from ${short(cell?.entropy ?? 0)} to
          ${short(cell?.unscaled.entropy ?? 0)} nats. A softmax of large scores saturates: it puts nearly all weight on
          one key, and its gradients vanish.
        </p>`,
  },
  {
    title: "Multi-head attention",
    view: "grid",
    render: ({ session }) => {
      const layers = session.anatomy?.layers ?? [];
      return html`<p>
          Each of the ${layers.length} blocks has ${layers[0]?.n_heads} attention heads,
          ${layers.reduce((sum, step) => sum + step.n_heads, 0)} in total. Each head has its own queries, keys and
          values of ${layers[0]?.head_dim} dimensions.
        </p>
        <p>
          Each thumbnail shows the attention pattern of one head on this text. A line below the diagonal attends to the
          previous token; a strong first column attends to the first token. Sort the heads by a role score to find the
          head that plays this role best.
        </p>`;
    },
  },
  {
    title: "Output projection",
    view: "heads",
    needs: "heads",
    render: ({ heads }) => {
      const shares = (heads?.shares ?? []).map(Number),
        best = shares.indexOf(Math.max(...shares));
      return html`<p>
          The results z of the ${shares.length} heads, ${heads?.z[0]?.length} dimensions each, are concatenated and
          multiplied by the matrix W<sub>o</sub>, which produces ${heads?.out.length} dimensions. This equals a sum over
          heads, each multiplied by its own slice of W<sub>o</sub>.
        </p>
        <p>
          Here head ${best} contributes most to the attention output: ${percent(shares[best] ?? 0)}. Exclude it to see
          the remaining sum.
        </p>`;
    },
  },
  {
    title: "Tokens",
    view: "tokenizer",
    needs: "tokens",
    render: ({ tokens }) =>
      html`<p>
          A model processes tokens instead of letters. The tokenizer has a vocabulary of
          ${count(tokens?.vocab_size ?? 0)} tokens and splits every text into them deterministically: these
          ${count(tokens?.n_bytes ?? 0)} bytes are ${count(tokens?.tokens.length ?? 0)} tokens.
        </p>
        <p>
          Byte-pair encoding starts from the bytes of a word and repeatedly merges the neighbouring pair that was
          learned first. Step through the merges below.
        </p>`,
  },
  {
    title: "Embeddings",
    view: "embedding",
    needs: "embedding",
    render: ({ session, embedding }) =>
      html`<p>
          The embedding table has a learned vector of ${session.anatomy?.d_model} dimensions for each of the
          ${count(session.anatomy?.vocab_size ?? 0)} tokens. ${inlineToken(embedding?.token.text)} has id
          ${embedding?.token.id}, so row ${embedding?.token.id} is the input of the first block.
        </p>
        <p>
          Tokens with similar use have similar vectors. The nearest neighbour is
          ${inlineToken(embedding?.nearest[0]?.text)}, with a cosine similarity of
          ${short(embedding?.nearest[0]?.value ?? 0)}.
        </p>`,
  },
  {
    title: "Transformer block",
    view: "block",
    needs: "block",
    render: ({ session, block }) =>
      html`<p>
          Each token has one vector that passes through all blocks, the <span class="r">residual stream</span>. Block
          ${block?.layer} adds two vectors to the stream of ${token(session, block?.position ?? 0)}: the attention
          output with norm ${short(block?.norms["attn.add"] ?? 0)}, and the output of the
          <span class="f">feed-forward layer</span> with norm ${short(block?.norms["mlp.add"] ?? 0)}.
        </p>
        <p>
          The feed-forward layer has ${count(block?.d_ff ?? 0)} neurons and processes each token independently. An
          active neuron promotes some next tokens and suppresses others, as the table shows.
        </p>`,
  },
  {
    title: "Model",
    view: "map",
    render: ({ session }) => {
      const { layers = [], shares = {}, parameters = 0 } = session.anatomy ?? {};
      return html`<p>
          The model consists of a tokenizer, an embedding, ${layers.length} blocks and an LM head. Press the keys , and
          . to follow one token through it.
        </p>
        <p>
          It has ${compact(parameters)} learned parameters: ${percent(shares["attention"] ?? 0, 0)} in
          <span class="q">attention</span>, ${percent(shares["feed-forward"] ?? 0, 0)} in
          <span class="f">feed-forward layers</span>.
        </p>`;
    },
  },
  {
    title: "Next-token prediction",
    view: "lens",
    needs: "summary",
    render: ({ session, summary }) => {
      const { query } = session.cursor,
        after = summary?.tokens[query + 1],
        best = (after ? after.top : summary?.next)?.[0];
      return html`<p>
          The LM head maps the final residual stream to ${count(session.anatomy?.vocab_size ?? 0)} logits, one for each
          token, and a softmax turns them into probabilities. After ${token(session, query)}, ${inlineToken(best?.text)}
          is the most likely token with ${percent(best?.value ?? 0)}.
        </p>
        <p>
          One token is sampled from these probabilities and appended to the text; then the model runs again. The logit
          lens shows the prediction after each block.
        </p>`;
    },
  },
  {
    title: "Parallel processing",
    view: "tracks",
    render: ({ session }) =>
      html`<p>
          The ${session.tokens.length} tokens pass through the ${session.anatomy?.layers.length} blocks in parallel.
          Only attention moves information between them. Attention is causal: a token never depends on a later one. The
          prompt is therefore processed in one forward
          pass${session.anatomy?.context ? `, up to ${count(session.anatomy.context)} tokens` : ""}.
        </p>
        <p>Replace a token below to see that the tokens before it do not change.</p>`,
  },
  {
    title: "Key-value cache",
    view: "cache",
    needs: "cache",
    render: ({ session, cache }) =>
      html`<p>
          Because a token never depends on a later one, its keys and values never change. The cache stores those of all
          ${session.tokens.length} tokens: ${bytes(cache?.layers[0]?.bytes_per_slot ?? 0)} for each token and block,
          ${bytes(cache?.bytes ?? 0)} in total. Each step then computes only the new token.
        </p>
        <p>Switch the cache off to see how much would be recomputed.</p>`,
  },
  {
    title: "Causal test",
    view: "fork",
    needs: "cell",
    render: ({ session, cell, fork }) => {
      const { cursor, edits } = session,
        largest = largestDivergence(fork);
      if (edits.length && fork)
        return html`<p>
            With ${edits.length === 1 ? describeEdit(edits[0] as Edit) : `${edits.length} edits`},
            ${
              largest && num(largest.kl ?? 0)
                ? html`the next-token probabilities change most after ${inlineToken(largest.token ?? "")}: the KL
                  divergence is ${short(largest.kl ?? 0)} nats`
                : "the next-token probabilities do not change"
            }.
          </p>
          <p>
            ${
              fork.diverges_at !== null
                ? html`The texts diverge at token ${fork.diverges_at}, so the text depends on the edited activations.`
                : fork.ends_at !== null
                  ? html`One text ends at token ${fork.ends_at} and the other continues, so the text depends on the
                    edited activations.`
                  : "The same tokens are generated: this edit alone does not change the text."
            }
          </p>`;
      return html`<p>
          In head ${cursor.head} of block ${cursor.layer}, ${token(session, cursor.query)} puts
          ${percent(cell?.prob ?? 0)} of its attention on ${token(session, cursor.key)}. A large attention weight does
          not prove that the head matters: ablate the head and let the model generate again.
        </p>
        <p>
          <button
            @click=${() =>
              session.navigate({
                edits: [{ op: "ablate", point: `blocks.${cursor.layer}.attn.z`, head: cursor.head }],
              })}
          >
            Ablate head ${cursor.head} of block ${cursor.layer}
          </button>
        </p>`;
    },
  },
];

@customElement("gf-tour-caption")
export class TourCaption extends SessionElement {
  @property({ type: Number }) step = 0;

  #want = (name: TourStep["needs"], parameters: () => Record<string, number>) => () =>
    TOUR[this.step]?.needs === name && name ? this.session.traceViewPath(name, parameters()) : null;
  #cell = new Resource<Cell>(
    this,
    this.#want("cell", () => ({ ...this.session.cursor })),
  );
  #heads = new Resource<Heads>(
    this,
    this.#want("heads", () => ({ layer: this.session.cursor.layer, position: this.session.cursor.query })),
  );
  #block = new Resource<Block>(
    this,
    this.#want("block", () => ({ layer: this.session.cursor.layer, position: this.session.cursor.query })),
  );
  #cache = new Resource<CacheView>(
    this,
    this.#want("cache", () => ({ layer: this.session.cursor.layer })),
  );
  #qkv = new Resource<QKV>(
    this,
    this.#want("qkv", () => ({
      layer: this.session.cursor.layer,
      head: this.session.cursor.head,
      position: this.session.cursor.query,
      dim: this.#number("dim", 0),
    })),
  );
  #summary = new Resource<Summary>(
    this,
    this.#want("summary", () => ({})),
  );
  #tokens = new Resource<Tokens>(this, () =>
    TOUR[this.step]?.needs === "tokens"
      ? this.session.modelViewPath("tokens", {
          text: this.session.address.options["tokenize"] ?? this.session.address.text,
        })
      : null,
  );
  #embedding = new Resource<Embedding>(this, () =>
    TOUR[this.step]?.needs === "embedding"
      ? this.session.modelViewPath("embedding", {
          token: this.#number("token", this.session.tokens[this.session.cursor.query]?.id ?? 0),
          n: 12,
          table: this.session.address.options["table"] === "output" ? "output" : "input",
        })
      : null,
  );

  /** An integer option of the view. */
  #number(name: string, otherwise: number): number {
    const asked = Number(this.session.address.options[name] ?? NaN);
    return Number.isInteger(asked) ? asked : otherwise;
  }

  #fork = new Resource<Fork>(this, () => {
    const { original, trace } = this.session;
    return TOUR[this.step]?.view === "fork" && original && trace && original !== trace
      ? `/v1/traces/${original.id}/views/fork?other=${trace.id}`
      : null;
  });

  static override styles = [
    SessionElement.styles,
    css`
      p {
        font-size: 0.88rem;
        line-height: 1.55;
      }
      p + p {
        margin-top: 0.55rem;
      }
    `,
  ];

  override render() {
    const step = TOUR[this.step];
    const facts: TourData = {
      session: this.session,
      cell: this.#cell.value,
      heads: this.#heads.value,
      block: this.#block.value,
      cache: this.#cache.value,
      fork: this.#fork.pending ? null : this.#fork.value,
      qkv: this.#qkv.value,
      summary: this.#summary.value,
      tokens: this.#tokens.value,
      embedding: this.#embedding.value,
    };
    const refused = [
      this.#cell,
      this.#heads,
      this.#block,
      this.#cache,
      this.#qkv,
      this.#summary,
      this.#tokens,
      this.#embedding,
    ].find((ask) => ask.error)?.error;
    if (step?.needs && refused) return html`<p>${refused.message}</p>`;
    if (!step || !this.session.trace || (step.needs && !facts[step.needs])) return nothing;
    return step.render(facts);
  }
}
