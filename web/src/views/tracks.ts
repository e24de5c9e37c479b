/** Residual stream view: the norm of every token's residual stream after every block, and its dependencies. */
import { css, html, nothing } from "lit";
import { customElement, state } from "lit/decorators.js";
import { setStyle } from "../lib/set_style.js";
import "../components/bars.js";
import "../components/matrix.js";
import "../components/receipt.js";
import "../components/notice.js";
import { Resource } from "../resource.js";
import { count, fixed, num, short } from "../lib/number.js";
import type { Pick } from "../components/matrix.js";
import { inlineToken, visibleText } from "../components/token.js";
import type { CacheSpeed, TraceDifference, TraceInfo, Tracks } from "../api_types.js";
import { ApiError } from "../transport.js";
import { SessionElement } from "../view.js";

const rowName = (i: number): string => (i === 0 ? "embedding" : `block ${i - 1}`);

@customElement("gf-view-tracks")
export class TracksView extends SessionElement {
  @state() private other: { of: string; trace: TraceInfo } | null = null;
  @state() private error = "";
  #tracks = new Resource<Tracks>(this, () => this.session.traceViewPath("tracks", {}));
  #changed = new Resource<TraceDifference>(this, () =>
    this.other && this.other.of === this.session.trace?.id
      ? this.session.traceViewPath("changed", { other: this.other.trace.id })
      : null,
  );

  #speed = new Resource<CacheSpeed>(this, () =>
    this.session.address.options["measure"] ? this.session.traceViewPath("cache_speed", {}) : null,
  );

  static override styles = [
    SessionElement.styles,
    css`
      .grid {
        position: relative;
      }
      .stack > p.axis {
        font-size: 0.78rem;
        max-width: none;
        color: var(--soft);
        display: flex;
        justify-content: space-between;
      }
      .context {
        height: 1.1rem;
        background: var(--wash);
        border-radius: 4px;
        overflow: hidden;
        position: relative;
      }
      .context span {
        position: absolute;
        inset: 0 auto 0 0;
        background: var(--residual);
      }
      input[type="range"] {
        width: 100%;
        padding: 0;
        accent-color: var(--ink);
      }
      form {
        display: flex;
        gap: 0.6rem;
        flex-wrap: wrap;
        align-items: center;
        font-size: 0.86rem;
      }
      form input {
        width: 9rem;
      }
    `,
  ];

  override render() {
    const tracks = this.#tracks.value,
      error = this.#tracks.error;
    return html`<section class="stack">
      <h2>Residual stream of all tokens</h2>
      ${error ? html`<gf-notice reason=${error.message}></gf-notice>` : tracks ? this.#show(tracks) : nothing}
    </section>`;
  }

  #show(tracks: Tracks) {
    const { session } = this,
      { cursor } = session,
      n = tracks.norms[0]?.length ?? 0,
      rows = tracks.norms.length;
    const level = Math.min(rows - 1, cursor.layer + 1),
      ranges = this.#dependencies(tracks, level, cursor.query);
    const flat = tracks.norms.flat().map(num),
      cone = flat.map((x, i) => (this.#inside(ranges, Math.floor(i / n), i % n) ? x : NaN));
    const all = session.address.options["dependencies"] !== "1",
      name = (i: number) => `${i} ${visibleText(session.tokens[i]?.text ?? "")}`;
    return html`<p>
        Columns are tokens, rows are blocks; the colour shows the norm of the residual stream. All tokens are computed
        in parallel. Only attention moves information between tokens, and only from left to right.
      </p>
      <div class="row">
        <button aria-pressed=${!all} @click=${() => session.setOptions({ dependencies: all ? "1" : null })}>
          show dependencies of the cell
        </button>
        <span class="small soft"
          >${inlineToken(session.tokens[cursor.query]?.text)} after block ${level - 1} depends on
          ${count(ranges.reduce((sum, [from, to]) => sum + to - from + 1, 0))} of ${count(n * rows)} cells</span
        >
      </div>
      <div class="grid">
        <gf-matrix
          meaning="residual"
          maxWidth="720"
          .data=${all ? flat : cone}
          .top=${Math.max(...flat.filter(Number.isFinite))}
          .rows=${rows}
          .columns=${n}
          .row=${level}
          .column=${cursor.query}
          rowName="after"
          rowHeight="26"
          columnName="token"
          .rowLabel=${rowName}
          .columnLabel=${name}
          columnTone="var(--query)"
          label="Norms of the residual stream"
          @pick=${(event: CustomEvent<Pick>) =>
            session.navigate({ query: event.detail.column, layer: Math.max(0, event.detail.row - 1) })}
        ></gf-matrix>
      </div>
      <gf-receipt .of=${tracks.receipt}></gf-receipt>
      ${this.#timing(n)}
      <div class="stack close">
        <h3>Context length</h3>
        <div class="context"><span ${setStyle({ width: `${(100 * n) / tracks.context}%` })}></span></div>
        <p class="axis"><span>${count(n)} tokens</span><span>maximum ${count(tracks.context)}</span></p>
        ${
          session.live
            ? html`<label class="small soft"
                >truncate the text and compare the remaining tokens:
                <input
                  type="range"
                  min="1"
                  max=${n}
                  aria-label="number of tokens to keep"
                  .value=${String(
                    this.other?.of === session.trace?.id ? Math.min(n, this.other?.trace.tokens.length ?? n) : n,
                  )}
                  @change=${(event: Event) =>
                    void this.#compareWith(() =>
                      (session.trace?.tokens ?? [])
                        .slice(0, Number((event.target as HTMLInputElement).value))
                        .map((token) => token.id),
                    )}
              /></label>`
            : nothing
        }
        ${
          tracks.windows.some((w) => w !== null)
            ? html`<p class="small soft">
                Sliding windows by block, in tokens: ${tracks.windows.map((w) => w ?? "none").join(", ")}.
              </p>`
            : nothing
        }
      </div>
      ${this.#comparison()}`;
  }

  /** Measured time of parallel and sequential processing. */
  #timing(n: number) {
    const { session } = this,
      speed = this.#speed.value,
      requested = session.address.options["measure"] !== undefined;
    if (n < 2 || (!session.live && !requested)) return nothing;
    return html`<div class="stack close">
      <h3>Parallel and sequential processing</h3>
      ${
        requested ? nothing : html`<p><button @click=${() => session.setOptions({ measure: "1" })}>Measure</button></p>`
      }
      ${
        requested && this.#speed.error
          ? html`<gf-notice heading="Measurement failed" reason=${this.#speed.error.message}></gf-notice>`
          : nothing
      }
      ${
        requested && speed
          ? html`<gf-bars
                wide
                meaning="residual"
                label="Milliseconds"
                .bars=${[
                  {
                    label: `${count(speed.tokens - 1)} tokens in parallel, one forward pass`,
                    value: speed.prefill,
                    text: `${fixed(speed.prefill, 2)} ms`,
                    chosen: true,
                  },
                  {
                    label: `sequential: ${count(
                      speed.tokens - 1,
                    )} × ${fixed(speed.decode, 2)} ms, measured at the last token`,
                    value: (speed.tokens - 1) * num(speed.decode),
                    text: `${fixed((speed.tokens - 1) * num(speed.decode), 2)} ms`,
                  },
                ]}
              ></gf-bars>
              <p class="small">
                The tokens of a prompt are known and can be processed in parallel. Generation is sequential: each token
                depends on the one before.
              </p>
              <gf-receipt .of=${speed.receipt}></gf-receipt>`
          : nothing
      }
    </div>`;
  }

  /** Return the range of columns that a cell depends on, for each row up to `level`. */
  #dependencies(tracks: Tracks, level: number, column: number): [number, number][] {
    const ranges: [number, number][] = [[column, column]];
    for (let i = level - 1; i >= 0; i--) {
      const window = tracks.windows[i],
        [from] = ranges[0] as [number, number];
      ranges.unshift([window === null || window === undefined ? 0 : Math.max(0, from - window + 1), column]);
    }
    return ranges;
  }

  #inside(ranges: [number, number][], row: number, column: number): boolean {
    const span = ranges[row];
    return span !== undefined && column >= span[0] && column <= span[1];
  }

  #comparison() {
    if (!this.session.live) return nothing;
    const { session } = this,
      changed = this.#changed.value,
      at = session.cursor.query,
      error = this.#changed.error?.message ?? this.error;
    const both = this.other?.trace.tokens ?? [],
      cut = !changed?.edited && both.every((token, i) => token.id === session.tokens[i]?.id); // truncated
    const largestDistance = Math.max(0, ...(changed?.distances.flat().map(num) ?? [])),
      long = Math.max(0, ...(this.#tracks.value?.norms.flat().map(num) ?? []));
    const n = changed?.distances[0]?.length ?? 0;
    return html`<div class="stack close">
      <h3>Replace one token and compare</h3>
      <form @submit=${this.#replaceToken}>
        <span>replace ${inlineToken(session.tokens[at]?.text)} (token ${at}) by</span>
        <input name="text" aria-label="Replacement text" spellcheck="false" required /><button>Compare</button>
      </form>
      ${error ? html`<gf-notice reason=${error}></gf-notice>` : nothing}
      ${
        changed && this.other && this.other.of === session.trace?.id
          ? html`<gf-matrix
                meaning="key"
                maxWidth="720"
                .top=${cut ? long : 0}
                .data=${changed.distances.flat().map(num)}
                .rows=${changed.distances.length}
                .columns=${n}
                .row=${changed.distances.length - 1}
                .column=${changed.first ?? 0}
                rowName="after"
                rowHeight="26"
                columnName="token"
                .rowLabel=${rowName}
                .columnLabel=${(i: number) => `${i} ${visibleText(session.tokens[i]?.text ?? "")}`}
                label="Distance between the two residual streams"
              ></gf-matrix>
              <p class="small">
                ${
                  cut
                    ? html`The ${n} remaining tokens are unchanged: the largest distance is
                        <span class="num">${short(largestDistance)}</span>.`
                    : changed.first === null
                      ? "No difference."
                      : html`${changed.token === null ? nothing : `The texts differ from token ${changed.token} on. `}${
                            changed.edited
                              ? html`An edit of <code>${changed.edited.point}</code> affects token
                                  ${changed.edited.position} from ${rowName(changed.edited.row)} on. `
                              : nothing
                          }Tokens
                          before ${changed.first} are unchanged: the largest distance is
                          <span class="num">${short(changed.max_before)}</span>.`
                }
              </p>
              <gf-receipt .of=${changed.receipt}></gf-receipt>`
          : nothing
      }
    </div>`;
  }

  #replaceToken = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    const { session } = this,
      { trace, cursor } = session,
      text = String(new FormData(event.target as HTMLFormElement).get("text"));
    if (!trace) return;
    await this.#compareWith(async () => {
      const { tokens } = await session.fetch<{ tokens: { id: number; special: boolean }[] }>(
        session.modelViewPath("tokens", { text }),
      );
      const ids = trace.tokens.map((token) => token.id);
      ids.splice(cursor.query, 1, ...tokens.filter((token) => !token.special).map((token) => token.id));
      return ids;
    });
  };

  /** Trace another token sequence for comparison. */
  async #compareWith(ids: () => number[] | Promise<number[]>): Promise<void> {
    const { session } = this,
      { trace } = session;
    if (!trace) return;
    this.error = "";
    try {
      const other = await session.transport.post<TraceInfo>("/v1/traces", {
        model: session.model,
        prompt: await ids(),
        max_tokens: 0,
      });
      this.other = { of: trace.id, trace: other };
    } catch (error) {
      this.error = error instanceof ApiError ? error.message : String(error);
    }
  }
}
