/** The guided walk: short captions, in the order of the classic overview, beside live pictures whose numbers they use. */
import { css, html, nothing, type TemplateResult } from "lit";
import { customElement, property } from "lit/decorators.js";
import { Ask } from "./ask.js";
import { big, bytes, count, percent, short } from "./lib/number.js";
import { quoted } from "./parts/token.js";
import type { BlockSum, CacheView, Cell, Heads } from "./shapes.js";
import type { Session } from "./session.js";
import type { STEPS } from "./steps.js";
import { Follower } from "./view.js";

interface Facts {
  session: Session;
  cell: Cell | null;
  heads: Heads | null;
  block: BlockSum | null;
  cache: CacheView | null;
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
    say: ({ session, cell }) => html`<p>To say what comes next, each token gathers from those before it. Row ${cell?.query} of the picture is what
      ${token(session, cell?.query ?? 0)} takes in head ${cell?.head} of block ${cell?.layer}: ${percent(cell?.prob ?? 0)} of it
      from ${token(session, cell?.key ?? 0)}.</p><p>Click any field; the stronger the colour, the more. Of all heads, this page opens at the one that speaks loudest for what comes next.</p>`,
  },
  {
    title: "Query, key, value",
    view: "qkv",
    say: ({ session }) => html`<p>From one vector come three. The <span class="q">query</span> of ${token(session, session.here.query)} asks, the
      <span class="k">key</span> says what a token can be found by, the <span class="v">value</span> is what it hands over.</p>
      <p>Each is the same x times a matrix of its own, learned in training, the same for all tokens.</p>`,
  },
  {
    title: "The scaled dot product",
    view: "cell",
    needs: "cell",
    say: ({ cell }) => html`<p>How well a <span class="q">query</span> fits a <span class="k">key</span> is the sum of ${cell?.q.length} products:
      ${short(cell?.sum ?? 0)}. Times ${short(cell?.scale ?? 0)} it is ${short(cell?.scaled ?? 0)}; softmax over all keys that may be seen makes it
      ${percent(cell?.prob ?? 0)}.</p><p>Switch the scaling off: the row's entropy goes from ${short(cell?.entropy ?? 0)} to
      ${short(cell?.unscaled.entropy ?? 0)} nats. Softmax saturates, and learning stops where it does.</p>`,
  },
  {
    title: "Many heads",
    view: "grid",
    say: ({ session }) => {
      const layers = session.anatomy?.layers ?? [];
      return html`<p>One look is not enough. Each of ${layers.length} blocks looks ${layers[0]?.n_heads} ways at once,
        ${layers.reduce((sum, one) => sum + one.n_heads, 0)} heads in all, each with queries, keys and values of ${layers[0]?.head_dim} numbers.</p>
        <p>Some look one token back, some for the last time that this token stood, many at the first token, where they rest.</p>`;
    },
  },
  {
    title: "Together again: W_o",
    view: "heads",
    needs: "heads",
    say: ({ heads }) => {
      const shares = (heads?.shares ?? []).map(Number), best = shares.indexOf(Math.max(...shares));
      return html`<p>The heads' results stand side by side and go through one matrix, W<sub>o</sub>. That is a sum: each head through its own slice.</p>
        <p>Here head ${best} writes most of what attention adds: ${percent(shares[best] ?? 0)} of it.</p>`;
    },
  },
  {
    title: "Tokens",
    view: "tokenizer",
    say: ({ session }) => html`<p>A model reads no letters. Its tokenizer cuts text into ${count(session.anatomy?.vocab_size ?? 0)} known pieces, the same
      way each time: this text is ${session.tokens.length} of them.</p><p>A word is put together from bytes, pair by pair, the commonest pair first.</p>`,
  },
  {
    title: "Embeddings",
    view: "embedding",
    say: ({ session }) => html`<p>Each of the ${count(session.anatomy?.vocab_size ?? 0)} tokens has a row of ${session.anatomy?.d_model} numbers.
      ${token(session, session.here.query)} is that row until the blocks add to it. Tokens that are used alike come to lie near each other.</p>`,
  },
  {
    title: "The block",
    view: "block",
    needs: "block",
    say: ({ block }) => html`<p>A block adds twice to the <span class="r">residual stream</span>: what attention gathered, of length
      ${short(block?.norms["attn.add"] ?? 0)}, and what the <span class="f">feed-forward layer</span> makes of it, ${short(block?.norms["mlp.add"] ?? 0)}.
      Nothing is overwritten.</p><p>Its ${count(block?.d_ff ?? 0)} neurons hold most of what the block has learned.</p>`,
  },
  {
    title: "The stack",
    view: "map",
    say: ({ session }) => {
      const { layers = [], shares = {}, parameters = 0 } = session.anatomy ?? {};
      return html`<p>${layers.length} blocks, one on the other, each reading what those below have added: ${big(parameters)} parameters, of which
        <span class="q">attention</span> has ${percent(shares["attention"] ?? 0, 0)} and <span class="f">feed-forward</span>
        ${percent(shares["feed-forward"] ?? 0, 0)}.</p>`;
    },
  },
  {
    title: "The head: which token next?",
    view: "lens",
    say: ({ session }) => html`<p>At the end the stream is held against every token's row: ${count(session.anatomy?.vocab_size ?? 0)} scores, which softmax turns into
      shares. The next token is drawn from them, put behind the text, and all begins anew.</p>`,
  },
  {
    title: "Parallel tracks",
    view: "tracks",
    say: ({ session }) => html`<p>The ${session.tokens.length} tokens go through the blocks side by side, each on a track of its own. Only attention crosses
      between them, and only backwards. So a whole text is read at once, up to the context's ${count(session.anatomy?.context ?? 0)} tokens.</p>`,
  },
  {
    title: "The cache",
    view: "cache",
    needs: "cache",
    say: ({ session, cache }) => html`<p>What is past does not change. The keys and values of all ${session.tokens.length} tokens are kept,
      ${bytes(cache?.bytes ?? 0)} here, so that a new token needs only its own track.</p>`,
  },
];

@customElement("gf-caption")
export class Caption extends Follower {
  @property({ type: Number }) step = 0;

  #want = (name: Step["needs"], parameters: () => Record<string, number>) => () =>
    WALK[this.step]?.needs === name && name ? this.session.ofTrace(name, parameters()) : null;
  #cell = new Ask<Cell>(this, this.#want("cell", () => ({ ...this.session.here })));
  #heads = new Ask<Heads>(this, this.#want("heads", () => ({ layer: this.session.here.layer, position: this.session.here.query })));
  #block = new Ask<BlockSum>(this, this.#want("block", () => ({ layer: this.session.here.layer, position: this.session.here.query })));
  #cache = new Ask<CacheView>(this, this.#want("cache", () => ({ layer: this.session.here.layer })));

  static override styles = [Follower.styles, css`p { font-size: 0.88rem; line-height: 1.55; } p + p { margin-top: 0.55rem; }`];

  override render() {
    const one = WALK[this.step];
    const facts: Facts = { session: this.session, cell: this.#cell.value, heads: this.#heads.value, block: this.#block.value, cache: this.#cache.value };
    if (!one || !this.session.trace || (one.needs && !facts[one.needs])) return nothing;
    return one.say(facts);
  }
}
