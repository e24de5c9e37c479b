/** Of view 13: the text as it was and under the edits, and how far apart what comes next is after each token. */
import { css, html, nothing } from "lit";
import { customElement, state } from "lit/decorators.js";
import "../parts/bars.js";
import "../parts/formula.js";
import "../parts/receipt.js";
import "../parts/refused.js";
import "../parts/strip.js";
import { Ask } from "../ask.js";
import { furthest } from "../lib/forked.js";
import { look } from "../lib/look.js";
import { count, num, percent, short } from "../lib/number.js";
import { inPython, python } from "../lib/words.js";
import { quoted, visible } from "../parts/token.js";
import type { Fork, Summary, TraceInfo } from "../shapes.js";
import { Refused } from "../transport.js";
import { Follower } from "../view.js";

const BEFORE = 6; // tokens of the prompt that are shown before what was written

@customElement("gf-fork-texts")
export class ForkTexts extends Follower {
  @state() private wrong = "";
  #asked = ""; // the trace beside which the original was last asked for
  #fork = new Ask<Fork>(this, () => {
    const { original, trace } = this.session;
    return original && trace && original !== trace ? `/v1/traces/${original.id}/views/fork?other=${trace.id}` : null;
  });
  #was = new Ask<Summary>(this, () =>
    this.session.original ? `/v1/traces/${this.session.original.id}/views/summary` : null,
  );
  #is = new Ask<Summary>(this, () => this.session.ofTrace("summary", {}));

  static override styles = [
    Follower.styles,
    css`
      .all {
        gap: 1rem;
      }
      .two {
        display: grid;
        grid-template-columns: 1fr 1fr;
        gap: 1.1rem 1.75rem;
      }
      .two > div {
        display: grid;
        gap: 0.5rem;
        align-content: start;
        min-width: 0;
      }
      h3 {
        border-bottom: 2px solid var(--line);
        padding-bottom: 0.25rem;
      }
      .text {
        line-height: 1;
        max-height: 13.5rem;
        overflow-y: auto;
        display: flex;
        flex-wrap: wrap;
        gap: 0.2rem 1px;
        padding: 2px;
      }
      .t {
        display: grid;
        border: 0;
        background: none;
        border-radius: 4px;
        padding: 0.15rem 0.12rem 0.1rem;
        white-space: pre;
        font-family: var(--mono);
        font-size: 0.9rem;
        line-height: 1.3;
        color: var(--soft);
        text-align: center;
      }
      .t.written {
        color: var(--ink);
        font-weight: 650;
        background: color-mix(in srgb, var(--ink) calc(var(--sure) * 11%), transparent);
      }
      .t.other {
        background: color-mix(in srgb, var(--key) 20%, transparent);
      }
      .t.here {
        outline: 2px solid var(--query);
        outline-offset: -1px;
      }
      .t i {
        align-self: end;
        display: block;
        height: 9px;
        position: relative;
      }
      .t i::after {
        content: "";
        position: absolute;
        inset: auto 1px 0;
        height: calc(var(--kl) * 9px);
        min-height: 1px;
        background: var(--ink);
        border-radius: 1px;
      }
      .t i.odd::after {
        height: 9px;
        background: repeating-linear-gradient(45deg, var(--ink) 0 1px, transparent 1px 3px);
      }
      .verdict {
        font-size: 1rem;
      }
      @media (max-width: 560px) {
        .two {
          grid-template-columns: 1fr;
        }
      }
    `,
  ];

  override willUpdate(): void {
    const { session } = this,
      id = session.trace?.id ?? "";
    if (id === this.#asked) return;
    this.#asked = id;
    this.wrong = "";
    session
      .readOriginal()
      .catch((error: unknown) => (this.wrong = error instanceof Refused ? error.message : String(error)));
  }

  /** The one that belongs to the two texts shown, not to those before. */
  get #forked(): Fork | null {
    const { original, trace } = this.session;
    return original && trace && original !== trace && !this.#fork.pending ? this.#fork.value : null;
  }

  override render() {
    const { session } = this,
      { trace, original } = session,
      wrong = this.wrong || this.#fork.error?.message;
    if (!trace) return nothing;
    const fork = this.#forked,
      edited = session.edits.length > 0;
    return html`<div class="stack all">
      ${wrong ? html`<gf-refused heading="The two texts cannot be compared" reason=${wrong}></gf-refused>` : nothing}
      <div class="two">
        <div>
          <h3>As it was</h3>
          ${
            original
              ? this.#text(original, edited ? trace : null, null)
              : html`<p class="small soft" role="status">
                  ${session.writing ? "…" : "reading it without the edits …"}
                </p>`
          }
        </div>
        <div>
          <h3>${edited ? "Under the edits" : "Under an edit"}</h3>
          ${
            session.writing
              ? html`<p class="small soft" role="status">
                  writing … ${session.writing.map((one) => visible(one.text))}
                </p>`
              : edited
                ? this.#text(trace, original, fork)
                : html`<p class="small soft">No edit holds. Make one below, or let a sweep say where one matters.</p>`
          }
        </div>
      </div>
      ${fork ? this.#apart(fork) : nothing} ${this.#next(fork)}
      ${fork ? html`<gf-receipt .of=${{ ...fork.receipt, python: this.#python() }}></gf-receipt>` : nothing}
    </div>`;
  }

  /** One text's end; `other` is the one beside it. */
  #text(trace: TraceInfo, other: TraceInfo | null, fork: Fork | null) {
    const { session } = this,
      { here } = session,
      open = trace === session.trace,
      from = Math.max(0, trace.n_prompt - BEFORE);
    const parts = other ? trace.tokens.findIndex((token, i) => token.id !== other.tokens[i]?.id) : -1;
    const top = Math.max(1e-30, num(furthest(fork)?.kl ?? 0));
    return html`<div
      class="text"
      tabindex="0"
      role="group"
      aria-label=${open ? "The text under the edits" : "The text as it was"}
    >
      ${from ? html`<span class="t">…</span>` : nothing}
      ${trace.tokens.slice(from).map((token, n) => {
        const i = from + n,
          written = i >= trace.n_prompt,
          kl = fork?.steps[i]?.kl ?? null,
          apart = parts >= 0 && i >= parts,
          sure = token.logprob === null ? 0 : Math.exp(num(token.logprob));
        const sizes = look({
          "--sure": Number.isFinite(sure) ? sure : 0,
          "--kl": kl === null || !Number.isFinite(num(kl)) ? 0 : num(kl) / top,
        });
        const name = `${written ? "t written" : "t"} ${
          apart && other?.tokens[i]?.id !== token.id ? "other" : ""
        } ${open && i === here.query ? "here" : ""}`;
        const about = `token ${i}${
          written && token.logprob !== null ? `, it had ${percent(sure)}` : ""
        }${kl === null ? "" : `; after it KL ${short(kl)}`}`;
        const bar = fork
          ? html`<i class=${kl !== null && !Number.isFinite(num(kl)) ? "odd" : ""} ?hidden=${kl === null}></i>`
          : nothing;
        return open || !apart
          ? html`<button class=${name} title=${about} ${sizes} @click=${() => session.go({ query: i })}>
              ${visible(token.text)}${bar}
            </button>`
          : html`<span class=${name} title=${about} ${sizes}>${visible(token.text)}${bar}</span>`;
      })}${trace.tokens.length === trace.n_prompt ? html`<span class="t">(nothing written)</span>` : nothing}
    </div>`;
  }

  #apart(fork: Fork) {
    const { session } = this,
      { here } = session,
      shared = fork.steps.filter((one) => one.kl !== null),
      kls = shared.map((one) => one.kl ?? 0);
    return html`<p class="verdict" role="status">${this.#verdict(fork)}</p>
      <div class="stack close">
        <gf-strip
          odd
          label="KL after each token that both texts share"
          .data=${kls}
          .at=${here.query < kls.length ? here.query : -1}
          .names=${(i: number) => `after ${i} ${visible(shared[i]?.token ?? "")}, KL`}
          @pick=${(event: CustomEvent<number>) => session.go({ query: event.detail })}
          >after each of ${count(kls.length)} tokens that both share, how far apart what comes next is</gf-strip
        >
      </div>`;
  }

  #verdict(fork: Fork) {
    const { trace } = this.session,
      kls = fork.steps.filter((one) => one.kl !== null).map((one) => num(one.kl ?? 0)),
      odd = kls.filter((x) => !Number.isFinite(x)).length;
    if (odd)
      return html`After ${odd === kls.length ? "every token" : `${count(odd)} of ${count(kls.length)} tokens`} the edits
      make of what comes next something that is no number
      (${kls.some(Number.isNaN) ? "NaN" : "∞"})${
        trace && trace.tokens.length === trace.n_prompt ? ", and from that nothing can be written." : "."
      }`;
    const most = furthest(fork),
      largest = num(most?.kl ?? 0);
    if (fork.parts === null && largest === 0 && kls.length === fork.steps.length)
      return html`Nothing changes: the same ${count(kls.length)} tokens, and KL is exactly 0 after each.`;
    const one = fork.parts === null ? undefined : fork.steps[fork.parts];
    if (one)
      return html`They part at token ${one.position}: ${quoted(one.token ?? "")} becomes ${quoted(one.other ?? "")}.`;
    const moved = html`What comes next moves most after token ${most?.position}, ${quoted(most?.token ?? "")}: KL
    ${short(largest)}.`;
    if (kls.length < fork.steps.length) return html`One goes on where the other ends, at token ${kls.length}. ${moved}`;
    return html`The same text: for what it wrote here, this was not needed. ${moved}`;
  }

  /** What comes after the token that is looked at, in both. */
  #next(fork: Fork | null) {
    const { session } = this,
      { trace, original, here } = session,
      was = this.#was.value,
      is = this.#is.value;
    if (!fork || !was || !is || !trace || !original) return nothing;
    const kl = fork.steps[here.query]?.kl ?? null;
    if (kl === null)
      return html`<p class="small soft">
        At token ${here.query} the two have parted: there is no same text to go on from.
      </p>`;
    const after = (summary: Summary) =>
      (summary.tokens[here.query + 1]?.top ?? summary.next).map((one) => ({ label: one.text, value: one.value }));
    return html`<div class="stack close">
      <div class="two">
        <div>
          <p class="small soft">after ${quoted(trace.tokens[here.query]?.text)}, as it was</p>
          <gf-bars tokens top="1" label="The likeliest next tokens as it was" .bars=${after(was)}></gf-bars>
        </div>
        <div>
          <p class="small soft">after ${quoted(trace.tokens[here.query]?.text)}, under the edits</p>
          <gf-bars tokens top="1" label="The likeliest next tokens under the edits" .bars=${after(is)}></gf-bars>
        </div>
      </div>
      <gf-formula
        >KL = Σ p · ln(p / q) = <span class="kl">${short(kl, 4)}</span> nats
        <span class="soft">p: as it was, q: under the edits, over all tokens</span></gf-formula
      >
    </div>`;
  }

  #python(): string {
    const { place, edits, anatomy } = this.session,
      under = `edit=[${edits.map(inPython).join(", ")}]`;
    if (anatomy?.kind !== "decoder") {
      // a source that is read, and what is written beside it
      const target = place.more["target"];
      return `t.fork(lm.trace(${[
        python(place.text),
        ...(target === undefined ? [] : [`target=${python(target)}`]),
        under,
      ].join(", ")}))`;
    }
    const chosen = place.write
      ? `, max_tokens=${place.write}, temperature=${place.temperature}${
          place.temperature > 0 ? `, seed=${place.seed}` : ""
        }`
      : "";
    return `t.fork(lm.trace(t.ids[:t.n_prompt]${chosen}, ${under}))`;
  }
}
