/** Comparison of the original and the edited text, with the KL divergence after each token. */
import { css, html, nothing } from "lit";
import { customElement, state } from "lit/decorators.js";
import "../components/bars.js";
import "../components/formula.js";
import "../components/receipt.js";
import "../components/notice.js";
import "../components/strip.js";
import { Resource } from "../resource.js";
import { largestDivergence } from "../lib/divergence.js";
import { setStyle } from "../lib/set_style.js";
import { count, num, percent, short } from "../lib/number.js";
import { pythonEdit, pythonLiteral } from "../lib/edit_text.js";
import { inlineToken, visibleText } from "../components/token.js";
import type { Fork, Summary, TraceInfo } from "../api_types.js";
import { ApiError } from "../transport.js";
import { SessionElement } from "../view.js";

const MAX_PROMPT = 6; // prompt tokens shown before the generated text

@customElement("gf-text-comparison")
export class TextComparison extends SessionElement {
  @state() private error = "";
  #requested = ""; // id of the trace for which the original was requested
  #fork = new Resource<Fork>(this, () => {
    const { original, trace } = this.session;
    return original && trace && original !== trace ? `/v1/traces/${original.id}/views/fork?other=${trace.id}` : null;
  });
  #originalSummary = new Resource<Summary>(this, () =>
    this.session.original ? `/v1/traces/${this.session.original.id}/views/summary` : null,
  );
  #editedSummary = new Resource<Summary>(this, () => this.session.traceViewPath("summary", {}));

  static override styles = [
    SessionElement.styles,
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
        white-space: nowrap;
        font-family: var(--mono);
        font-size: 0.9rem;
        line-height: 1.3;
        color: var(--soft);
        text-align: center;
      }
      .t.generated {
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
    if (id === this.#requested) return;
    this.#requested = id;
    this.error = "";
    session
      .loadOriginal()
      .catch((error: unknown) => (this.error = error instanceof ApiError ? error.message : String(error)));
  }

  /** The comparison of the two traces that are shown, or null. */
  get #comparison(): Fork | null {
    const { original, trace } = this.session;
    return original && trace && original !== trace && !this.#fork.pending ? this.#fork.value : null;
  }

  override render() {
    const { session } = this,
      { trace, original } = session,
      wrong = this.error || this.#fork.error?.message;
    if (!trace) return nothing;
    const fork = this.#comparison,
      edited = session.edits.length > 0;
    return html`<div class="stack all">
      ${wrong ? html`<gf-notice heading="The texts cannot be compared" reason=${wrong}></gf-notice>` : nothing}
      <div class="two">
        <div>
          <h3>Original</h3>
          ${
            original
              ? this.#text(original, edited ? trace : null, null)
              : html`<p class="small soft" role="status">
                  ${session.generated ? "…" : "processing the text without edits …"}
                </p>`
          }
        </div>
        <div>
          <h3>Edited</h3>
          ${
            session.generated
              ? html`<p class="small soft" role="status">
                  generating … ${session.generated.map((one) => visibleText(one.text))}
                </p>`
              : edited
                ? this.#text(trace, original, fork)
                : html`<p class="small soft">No edits. Add an edit below, or run a sweep to find effective ones.</p>`
          }
        </div>
      </div>
      ${fork ? this.#divergence(fork) : nothing} ${this.#next(fork)}
      ${fork ? html`<gf-receipt .of=${{ ...fork.receipt, python: this.#python() }}></gf-receipt>` : nothing}
    </div>`;
  }

  /** Render the end of a text; `other` is the text to compare with. */
  #text(trace: TraceInfo, other: TraceInfo | null, fork: Fork | null) {
    const { session } = this,
      { cursor } = session,
      open = trace === session.trace,
      from = Math.max(0, trace.n_prompt - MAX_PROMPT);
    const parts = other ? trace.tokens.findIndex((token, i) => token.id !== other.tokens[i]?.id) : -1;
    const top = Math.max(1e-30, num(largestDivergence(fork)?.kl ?? 0));
    return html`<div class="text" tabindex="0" role="group" aria-label=${open ? "Edited text" : "Original text"}>
      ${from ? html`<span class="t">…</span>` : nothing}
      ${trace.tokens.slice(from).map((token, n) => {
        const i = from + n,
          generated = i >= trace.n_prompt,
          kl = fork?.steps[i]?.kl ?? null,
          differs = parts >= 0 && i >= parts,
          probability = token.logprob === null ? 0 : Math.exp(num(token.logprob));
        const sizes = setStyle({
          "--sure": Number.isFinite(probability) ? probability : 0,
          "--kl": kl === null || !Number.isFinite(num(kl)) ? 0 : num(kl) / top,
        });
        const name = `${generated ? "t generated" : "t"} ${
          differs && other?.tokens[i]?.id !== token.id ? "other" : ""
        } ${open && i === cursor.query ? "here" : ""}`;
        const tooltip = `token ${i}${
          generated && token.logprob !== null ? `, probability ${percent(probability)}` : ""
        }${kl === null ? "" : `; KL divergence after it ${short(kl)}`}`;
        const bar = fork
          ? html`<i class=${kl !== null && !Number.isFinite(num(kl)) ? "odd" : ""} ?hidden=${kl === null}></i>`
          : nothing;
        return open || !differs
          ? html`<button class=${name} title=${tooltip} ${sizes} @click=${() => session.navigate({ query: i })}>
              ${visibleText(token.text)}${bar}
            </button>`
          : html`<span class=${name} title=${tooltip} ${sizes}>${visibleText(token.text)}${bar}</span>`;
      })}${trace.tokens.length === trace.n_prompt ? html`<span class="t">(nothing generated)</span>` : nothing}
    </div>`;
  }

  #divergence(fork: Fork) {
    const { session } = this,
      { cursor } = session,
      shared = fork.steps.filter((one) => one.kl !== null),
      kls = shared.map((one) => one.kl ?? 0);
    return html`<p class="verdict" role="status">${this.#conclusion(fork)}</p>
      <div class="stack close">
        <gf-strip
          marksNonFinite
          label="KL divergence after each shared token"
          .data=${kls}
          .at=${cursor.query < kls.length ? cursor.query : -1}
          .names=${(i: number) => `after ${i} ${visibleText(shared[i]?.token ?? "")}, KL`}
          @pick=${(event: CustomEvent<number>) => session.navigate({ query: event.detail })}
          >KL divergence after each of ${count(kls.length)} shared tokens</gf-strip
        >
      </div>`;
  }

  #conclusion(fork: Fork) {
    const { trace } = this.session,
      kls = fork.steps.filter((one) => one.kl !== null).map((one) => num(one.kl ?? 0)),
      nonFinite = kls.filter((x) => !Number.isFinite(x)).length;
    if (nonFinite)
      return html`The KL divergence is ${kls.some(Number.isNaN) ? "NaN" : "∞"} after
      ${nonFinite === kls.length ? "every token" : `${count(nonFinite)} of ${count(kls.length)} tokens`}, because an
      edit made a value
      overflow.${trace && trace.tokens.length === trace.n_prompt ? " No text could be generated." : ""}`;
    const largest = largestDivergence(fork),
      largestKl = num(largest?.kl ?? 0);
    if (fork.diverges_at === null && fork.ends_at === null && largestKl === 0)
      return html`No change: the same ${count(kls.length)} tokens, and the KL divergence is exactly 0 after each.`;
    const one = fork.diverges_at === null ? undefined : fork.steps[fork.diverges_at];
    if (one)
      return html`The texts diverge at token ${one.position}: ${inlineToken(one.token ?? "")} becomes
      ${inlineToken(one.other ?? "")}.`;
    const divergence = html`The KL divergence is largest after token ${largest?.position},
    ${inlineToken(largest?.token ?? "")}: ${short(largestKl)}.`;
    if (fork.ends_at !== null) return html`One text ends at token ${fork.ends_at}, the other continues. ${divergence}`;
    return html`The text is unchanged. ${divergence}`;
  }

  /** The next-token probabilities after the selected token in both texts. */
  #next(fork: Fork | null) {
    const { session } = this,
      { trace, original, cursor } = session,
      was = this.#originalSummary.value,
      is = this.#editedSummary.value;
    if (!fork || !was || !is || !trace || !original) return nothing;
    const kl = fork.steps[cursor.query]?.kl ?? null;
    if (kl === null)
      return html`<p class="small soft">
        The texts have diverged before token ${cursor.query}, so the next-token probabilities cannot be compared.
      </p>`;
    const after = (summary: Summary) =>
      (summary.tokens[cursor.query + 1]?.top ?? summary.next).map((one) => ({ label: one.text, value: one.value }));
    return html`<div class="stack close">
      <div class="two">
        <div>
          <p class="small soft">after ${inlineToken(trace.tokens[cursor.query]?.text)}, original</p>
          <gf-bars tokens top="1" label="Most likely next tokens, original" .bars=${after(was)}></gf-bars>
        </div>
        <div>
          <p class="small soft">after ${inlineToken(trace.tokens[cursor.query]?.text)}, edited</p>
          <gf-bars tokens top="1" label="Most likely next tokens, edited" .bars=${after(is)}></gf-bars>
        </div>
      </div>
      <gf-formula
        >KL = Σ p · ln(p / q) = <span class="kl">${short(kl, 4)}</span> nats
        <span class="soft">p: original, q: edited, summed over the vocabulary</span></gf-formula
      >
    </div>`;
  }

  #python(): string {
    const { address, edits, anatomy } = this.session,
      under = `edit=[${edits.map(pythonEdit).join(", ")}]`;
    if (anatomy?.kind !== "decoder") {
      // source and target
      const target = address.options["target"];
      return `t.fork(lm.trace(${[
        pythonLiteral(address.text),
        ...(target === undefined ? [] : [`target=${pythonLiteral(target)}`]),
        under,
      ].join(", ")}))`;
    }
    const chosen = address.max_tokens
      ? `, max_tokens=${address.max_tokens}, temperature=${address.temperature}${
          address.temperature > 0 ? `, seed=${address.seed}` : ""
        }`
      : "";
    return `t.fork(lm.trace(t.ids[:t.n_prompt]${chosen}, ${under}))`;
  }
}
