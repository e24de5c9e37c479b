/** The guided walk: short captions, in the order of the classic overview, beside live pictures whose numbers they use. */
import { css, html, nothing, type TemplateResult } from "lit";
import { customElement, property } from "lit/decorators.js";
import { Ask } from "./ask.js";
import type { Edit } from "./lib/address.js";
import { big, bytes, count, num, percent, short } from "./lib/number.js";
import { inWords } from "./lib/words.js";
import { furthest } from "./lib/forked.js";
import { quoted } from "./parts/token.js";
import type { BlockSum, CacheView, Cell, Embedding, Fork, Heads, QKV, Summary, Tokens } from "./shapes.js";
import type { Session } from "./session.js";
import type { STEPS } from "./steps.js";
import { Follower } from "./view.js";

interface Facts {
  session: Session;
  cell: Cell | null;
  heads: Heads | null;
  block: BlockSum | null;
  cache: CacheView | null;
  fork: Fork | null;
  qkv: QKV | null;
  summary: Summary | null;
  tokens: Tokens | null;
  embedding: Embedding | null;
}

interface Step {
  title: string;
  view: (typeof STEPS)[number];
  needs?: keyof Omit<Facts, "session">;
  say: (facts: Facts) => TemplateResult;
}

const token = (s: Session, i: number) => quoted(s.tokens[i]?.text);

export const WALK: readonly Step[] = [
  {
    title: "Attention: a token looks back",
    view: "cell",
    needs: "cell",
    say: ({ session, cell }) =>
      html`<p>
          A model writes one token at a time. To know what comes next, each token first gathers from those before it:
          that is attention. Row ${cell?.query} of the picture shows where ${token(session, cell?.query ?? 0)} looks in
          head ${cell?.head} of block ${cell?.layer}: ${percent(cell?.prob ?? 0)} of what it takes comes from
          ${token(session, cell?.key ?? 0)}, token ${cell?.key}.
        </p>
        <p>
          Click any field: the stronger its colour, the larger the share. Of all heads, this page opens at the one that
          adds most to the logit of the likeliest next token.
        </p>`,
  },
  {
    title: "Query, key, value",
    view: "qkv",
    needs: "qkv",
    say: ({ session, qkv }) =>
      html`<p>
          How does a token know where to look? From the one vector x of ${token(session, qkv?.position ?? 0)},
          ${qkv?.x.length} numbers, come three of ${qkv?.q.length}: its <span class="q">query</span> is what it looks
          for, its <span class="k">key</span> what others find it by, its <span class="v">value</span> what it hands
          over when found.
        </p>
        <p>
          ${
            qkv?.products.q
              ? html`Each number is a sum of ${qkv.products.q.weights.length} products: query[${qkv.dim}] =
                ${short(qkv.products.q.value)} is ${qkv.products.q.of === "x" ? "x" : "a latent of x"} times row
                ${qkv.dim} of ${qkv.products.q.matrix}.`
              : nothing
          }
          The matrices were learned in training, and are the same for every token.
        </p>`,
  },
  {
    title: "The scaled dot product",
    view: "cell",
    needs: "cell",
    say: ({ cell }) =>
      html`<p>
          How well a <span class="q">query</span> fits a <span class="k">key</span> is one number, the sum of
          ${cell?.q.length} products: ${short(cell?.sum ?? 0)}. Times the scale ${short(cell?.scale ?? 0)} it is
          ${short(cell?.scaled ?? 0)}; softmax then turns the scores of all keys that may be seen into shares, and this
          one into ${percent(cell?.prob ?? 0)}. Step through it with the keys , and .
        </p>
        <p>
          Press “without the scale”: the row's entropy, how evenly it is spread, goes from ${short(cell?.entropy ?? 0)}
          to ${short(cell?.unscaled.entropy ?? 0)} nats. One key takes nearly all: softmax saturates, and there a model
          can hardly learn.
        </p>`,
  },
  {
    title: "Many heads",
    view: "grid",
    say: ({ session }) => {
      const layers = session.anatomy?.layers ?? [];
      return html`<p>
          One look is not enough. Each of ${layers.length} blocks looks ${layers[0]?.n_heads} ways at once,
          ${layers.reduce((sum, one) => sum + one.n_heads, 0)} heads in all, each with queries, keys and values of
          ${layers[0]?.head_dim} numbers.
        </p>
        <p>
          Each small picture is one of them on this text: a line beside the diagonal looks one token back, a dark first
          column rests on the first token. Put them “in the order of” a score to find its best player.
        </p>`;
    },
  },
  {
    title: "Together again: W_o",
    view: "heads",
    needs: "heads",
    say: ({ heads }) => {
      const shares = (heads?.shares ?? []).map(Number),
        best = shares.indexOf(Math.max(...shares));
      return html`<p>
          The results z of the ${shares.length} heads, ${heads?.z[0]?.length} numbers each, stand side by side and go
          through one matrix, W<sub>o</sub>, which makes ${heads?.out.length} numbers of them. That is a sum: each head
          goes through its own slice of the matrix.
        </p>
        <p>
          Here head ${best} writes most of what attention adds: ${percent(shares[best] ?? 0)} of it. Mute it, and see
          what is left.
        </p>`;
    },
  },
  {
    title: "Tokens",
    view: "tokenizer",
    needs: "tokens",
    say: ({ tokens }) =>
      html`<p>
          What are these tokens? A model reads no letters. Its tokenizer knows ${count(tokens?.vocab_size ?? 0)} pieces
          of text and cuts every text into them, always the same way: these ${count(tokens?.n_bytes ?? 0)} bytes are
          ${count(tokens?.tokens.length ?? 0)} tokens.
        </p>
        <p>
          A word begins as its bytes, and neighbours are joined pair by pair: first the pair that training found first.
          Step through it below.
        </p>`,
  },
  {
    title: "Embeddings",
    view: "embedding",
    needs: "embedding",
    say: ({ session, embedding }) =>
      html`<p>
          Each of the ${count(session.anatomy?.vocab_size ?? 0)} tokens has a row of ${session.anatomy?.d_model}
          numbers, learned in training. ${quoted(embedding?.token.text)} is number ${embedding?.token.id}, and enters
          the first block as row ${embedding?.token.id}.
        </p>
        <p>
          Tokens that are used alike come to lie near each other: nearest to it is
          ${quoted(embedding?.nearest[0]?.text)}, at a cosine of ${short(embedding?.nearest[0]?.value ?? 0)}.
        </p>`,
  },
  {
    title: "The block",
    view: "block",
    needs: "block",
    say: ({ session, block }) =>
      html`<p>
          Each token carries one vector through the model, its <span class="r">residual stream</span>. Block
          ${block?.layer} adds to that of ${token(session, block?.position ?? 0)} twice: what attention gathered, of
          length ${short(block?.norms["attn.add"] ?? 0)}, and what the <span class="f">feed-forward layer</span> makes
          of it, ${short(block?.norms["mlp.add"] ?? 0)}. Nothing is overwritten.
        </p>
        <p>
          The feed-forward layer has ${count(block?.d_ff ?? 0)} neurons. Each looks at one token alone and, when it
          fires, pushes towards some tokens and away from others: the table shows which.
        </p>`,
  },
  {
    title: "The stack",
    view: "map",
    say: ({ session }) => {
      const { layers = [], shares = {}, parameters = 0 } = session.anatomy ?? {};
      return html`<p>
          That is the whole model: a tokenizer, an embedding, ${layers.length} such blocks, each reading what those
          before it have added, and a head. Step one token through it with the keys , and .
        </p>
        <p>
          It has ${big(parameters)} parameters, numbers learned in training:
          <span class="q">attention</span> ${percent(shares["attention"] ?? 0, 0)} of them,
          <span class="f">feed-forward</span> ${percent(shares["feed-forward"] ?? 0, 0)}.
        </p>`;
    },
  },
  {
    title: "The head: which token next?",
    view: "lens",
    needs: "summary",
    say: ({ session, summary }) => {
      const { query } = session.here,
        after = summary?.tokens[query + 1],
        best = (after ? after.top : summary?.next)?.[0];
      return html`<p>
          After the last block the stream is held against the row of every token:
          ${count(session.anatomy?.vocab_size ?? 0)} scores, which softmax turns into shares. After
          ${token(session, query)}, ${quoted(best?.text)} has the largest: ${percent(best?.value ?? 0)}.
        </p>
        <p>
          One token is drawn from these shares and put behind the text, and all begins anew. The grid shows what each
          block would have said already.
        </p>`;
    },
  },
  {
    title: "Parallel tracks",
    view: "tracks",
    say: ({ session }) =>
      html`<p>
          The ${session.tokens.length} tokens go through the ${session.anatomy?.layers.length} blocks side by side, each
          on a track of its own. Only attention crosses between tracks, and it only looks back: a token never depends on
          a later one. So a whole text is read at
          once${session.anatomy?.context ? `, up to the context's ${count(session.anatomy.context)} tokens` : ""}.
        </p>
        <p>Change a token below, and see that nothing to its left moves.</p>`,
  },
  {
    title: "The cache",
    view: "cache",
    needs: "cache",
    say: ({ session, cache }) =>
      html`<p>
          Because a token never depends on a later one, what is past does not change. The keys and values of all
          ${session.tokens.length} tokens are kept, ${bytes(cache?.layers[0]?.bytes_per_slot ?? 0)} for each token and
          block, ${bytes(cache?.bytes ?? 0)} in all, so that a new token needs only its own track.
        </p>
        <p>Switch the cache off, and see how much would be computed again.</p>`,
  },
  {
    title: "Does it cause what it seems to?",
    view: "fork",
    needs: "cell",
    say: ({ session, cell, fork }) => {
      const { here, edits } = session,
        parts = fork?.parts ?? null,
        largest = furthest(fork);
      if (edits.length && fork)
        return html`<p>
            Under ${edits.length === 1 ? inWords(edits[0] as Edit) : `${edits.length} edits`},
            ${
              largest && num(largest.kl ?? 0)
                ? html`what comes next moves most after ${quoted(largest.token ?? "")}: KL ${short(largest.kl ?? 0)}
                  nats`
                : "nothing moves that can be measured"
            }.
          </p>
          <p>
            ${
              parts === null
                ? "The text stays as it was: for this text, that was not what wrote it."
                : html`From token ${parts} on it is another text: that was needed to write it.`
            }
          </p>`;
      return html`<p>
          Head ${here.head} of block ${here.layer} takes ${percent(cell?.prob ?? 0)} for ${token(session, here.query)}
          from ${token(session, here.key)}. Looking is not causing: take it out, and let the model write again.
        </p>
        <p>
          <button
            @click=${() =>
              session.go({ edits: [{ op: "ablate", point: `blocks.${here.layer}.attn.z`, head: here.head }] })}
          >
            Silence head ${here.head} of block ${here.layer}
          </button>
        </p>`;
    },
  },
];

@customElement("gf-caption")
export class Caption extends Follower {
  @property({ type: Number }) step = 0;

  #want = (name: Step["needs"], parameters: () => Record<string, number>) => () =>
    WALK[this.step]?.needs === name && name ? this.session.ofTrace(name, parameters()) : null;
  #cell = new Ask<Cell>(
    this,
    this.#want("cell", () => ({ ...this.session.here })),
  );
  #heads = new Ask<Heads>(
    this,
    this.#want("heads", () => ({ layer: this.session.here.layer, position: this.session.here.query })),
  );
  #block = new Ask<BlockSum>(
    this,
    this.#want("block", () => ({ layer: this.session.here.layer, position: this.session.here.query })),
  );
  #cache = new Ask<CacheView>(
    this,
    this.#want("cache", () => ({ layer: this.session.here.layer })),
  );
  #qkv = new Ask<QKV>(
    this,
    this.#want("qkv", () => ({
      layer: this.session.here.layer,
      head: this.session.here.head,
      position: this.session.here.query,
      dim: this.#number("dim", 0),
    })),
  );
  #summary = new Ask<Summary>(
    this,
    this.#want("summary", () => ({})),
  );
  #tokens = new Ask<Tokens>(this, () =>
    WALK[this.step]?.needs === "tokens"
      ? this.session.ofModel("tokens", { text: this.session.place.more["try"] ?? this.session.place.text })
      : null,
  );
  #embedding = new Ask<Embedding>(this, () =>
    WALK[this.step]?.needs === "embedding"
      ? this.session.ofModel("embedding", {
          token: this.#number("token", this.session.tokens[this.session.here.query]?.id ?? 0),
          n: 12,
          table: this.session.place.more["table"] === "output" ? "output" : "input",
        })
      : null,
  );

  /** What the view beside it was told to show. */
  #number(name: string, otherwise: number): number {
    const asked = Number(this.session.place.more[name] ?? NaN);
    return Number.isInteger(asked) ? asked : otherwise;
  }

  #fork = new Ask<Fork>(this, () => {
    const { original, trace } = this.session;
    return WALK[this.step]?.view === "fork" && original && trace && original !== trace
      ? `/v1/traces/${original.id}/views/fork?other=${trace.id}`
      : null;
  });

  static override styles = [
    Follower.styles,
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
    const one = WALK[this.step];
    const facts: Facts = {
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
    if (one?.needs && refused) return html`<p>${refused.message}</p>`;
    if (!one || !this.session.trace || (one.needs && !facts[one.needs])) return nothing;
    return one.say(facts);
  }
}
