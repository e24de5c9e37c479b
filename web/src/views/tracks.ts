/** View 4. Tokens on parallel tracks: every token's stream in every block, what a cell can see, where the context ends. */
import { css, html, nothing } from "lit";
import { customElement, state } from "lit/decorators.js";
import { look } from "../lib/look.js";
import "../parts/bars.js";
import "../parts/matrix.js";
import "../parts/receipt.js";
import "../parts/refused.js";
import { Ask } from "../ask.js";
import { count, fixed, num, short } from "../lib/number.js";
import type { Pick } from "../parts/matrix.js";
import { quoted, visible } from "../parts/token.js";
import type { CacheSpeed, Changed, TraceInfo, Tracks } from "../shapes.js";
import { Refused } from "../transport.js";
import { Follower } from "../view.js";

const floor = (i: number): string => (i === 0 ? "the embedding" : `block ${i - 1}`);

@customElement("gf-view-tracks")
export class TracksView extends Follower {
  @state() private other: { of: string; trace: TraceInfo } | null = null;
  @state() private wrong = "";
  #tracks = new Ask<Tracks>(this, () => this.session.ofTrace("tracks", {}));
  #changed = new Ask<Changed>(this, () =>
    this.other && this.other.of === this.session.trace?.id
      ? this.session.ofTrace("changed", { other: this.other.trace.id })
      : null,
  );

  #speed = new Ask<CacheSpeed>(this, () =>
    this.session.place.more["timed"] ? this.session.ofTrace("cache_speed", {}) : null,
  );

  static override styles = [
    Follower.styles,
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
      <h2>Parallel tracks</h2>
      ${error ? html`<gf-refused reason=${error.message}></gf-refused>` : tracks ? this.#show(tracks) : nothing}
    </section>`;
  }

  #show(tracks: Tracks) {
    const { session } = this,
      { here } = session,
      n = tracks.norms[0]?.length ?? 0,
      rows = tracks.norms.length;
    const level = Math.min(rows - 1, here.layer + 1),
      seen = this.#reach(tracks, level, here.query);
    const flat = tracks.norms.flat().map(num),
      cone = flat.map((x, i) => (this.#inside(seen, Math.floor(i / n), i % n) ? x : NaN));
    const all = session.place.more["cone"] !== "1",
      name = (i: number) => `${i} ${visible(session.tokens[i]?.text ?? "")}`;
    return html`<p>
        One column is a token, one row a block: the colour is how long the token's stream is there. All columns are
        computed side by side; only attention carries something from one to another, and only to the right.
      </p>
      <div class="row">
        <button aria-pressed=${!all} @click=${() => session.more({ cone: all ? "1" : null })}>
          only what the cell depends on
        </button>
        <span class="small soft"
          >${quoted(session.tokens[here.query]?.text)} after block ${level - 1} depends on
          ${count(seen.reduce((sum, [from, to]) => sum + to - from + 1, 0))} of ${count(n * rows)} cells</span
        >
      </div>
      <div class="grid">
        <gf-matrix
          meaning="residual"
          most="720"
          .data=${all ? flat : cone}
          .top=${Math.max(...flat.filter(Number.isFinite))}
          .rows=${rows}
          .columns=${n}
          .row=${level}
          .column=${here.query}
          rowName="after"
          rowHeight="26"
          columnName="token"
          .rowLabel=${floor}
          .columnLabel=${name}
          columnTone="var(--query)"
          label="Lengths of the residual stream"
          @pick=${(event: CustomEvent<Pick>) =>
            session.go({ query: event.detail.column, layer: Math.max(0, event.detail.row - 1) })}
        ></gf-matrix>
      </div>
      <gf-receipt .of=${tracks.receipt}></gf-receipt>
      ${this.#timed(n)}
      <div class="stack close">
        <h3>Where the context ends</h3>
        <div class="context"><span ${look({ width: `${(100 * n) / tracks.context}%` })}></span></div>
        <p class="axis"><span>${count(n)} tokens</span><span>${count(tracks.context)} at most</span></p>
        ${
          session.live
            ? html`<label class="small soft"
                >end this text earlier, and see that nothing before the end changes:
                <input
                  type="range"
                  min="1"
                  max=${n}
                  aria-label="where the text ends"
                  .value=${String(
                    this.other?.of === session.trace?.id ? Math.min(n, this.other?.trace.tokens.length ?? n) : n,
                  )}
                  @change=${(event: Event) =>
                    void this.#read(() =>
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
                Windows, block by block: ${tracks.windows.map((w) => w ?? "all").join(", ")} tokens back.
              </p>`
            : nothing
        }
      </div>
      ${this.#edit()}`;
  }

  /** All tracks at once, and one after the other. */
  #timed(n: number) {
    const { session } = this,
      speed = this.#speed.value,
      asked = session.place.more["timed"] !== undefined;
    if (n < 2 || (!session.live && !asked)) return nothing;
    return html`<div class="stack close">
      <h3>All at once, or one by one</h3>
      ${asked ? nothing : html`<p><button @click=${() => session.more({ timed: "1" })}>Measure it now</button></p>`}
      ${
        asked && this.#speed.error
          ? html`<gf-refused heading="Not measured" reason=${this.#speed.error.message}></gf-refused>`
          : nothing
      }
      ${
        asked && speed
          ? html`<gf-bars
                wide
                meaning="residual"
                label="Milliseconds"
                .bars=${[
                  {
                    label: `${count(speed.tokens - 1)} tokens side by side, in one pass`,
                    value: speed.prefill,
                    text: `${fixed(speed.prefill, 2)} ms`,
                    chosen: true,
                  },
                  {
                    label: `one by one: ${count(
                      speed.tokens - 1,
                    )} × ${fixed(speed.decode, 2)} ms, measured at the last token`,
                    value: (speed.tokens - 1) * num(speed.decode),
                    text: `${fixed((speed.tokens - 1) * num(speed.decode), 2)} ms`,
                  },
                ]}
              ></gf-bars>
              <p class="small">
                Reading can go side by side, for all tokens are known. Writing cannot: each token waits for the one
                before it.
              </p>
              <gf-receipt .of=${speed.receipt}></gf-receipt>`
          : nothing
      }
    </div>`;
  }

  /** For each row up to `level`, the columns that the cell can depend on: attention reaches back, a window only so far. */
  #reach(tracks: Tracks, level: number, column: number): [number, number][] {
    const seen: [number, number][] = [[column, column]];
    for (let i = level - 1; i >= 0; i--) {
      const window = tracks.windows[i],
        [from] = seen[0] as [number, number];
      seen.unshift([window === null || window === undefined ? 0 : Math.max(0, from - window + 1), column]);
    }
    return seen;
  }

  #inside(seen: [number, number][], row: number, column: number): boolean {
    const span = seen[row];
    return span !== undefined && column >= span[0] && column <= span[1];
  }

  #edit() {
    if (!this.session.live) return nothing;
    const { session } = this,
      changed = this.#changed.value,
      at = session.here.query,
      error = this.#changed.error?.message ?? this.wrong;
    const both = this.other?.trace.tokens ?? [],
      cut = !changed?.edited && both.every((token, i) => token.id === session.tokens[i]?.id); // the same, and shorter
    const apart = Math.max(0, ...(changed?.distances.flat().map(num) ?? [])),
      long = Math.max(0, ...(this.#tracks.value?.norms.flat().map(num) ?? []));
    const n = changed?.distances[0]?.length ?? 0;
    return html`<div class="stack close">
      <h3>Change one token, and see which cells change</h3>
      <form @submit=${this.#fork}>
        <span>instead of ${quoted(session.tokens[at]?.text)} (token ${at})</span>
        <input name="text" aria-label="Text to put there" spellcheck="false" required /><button>Read again</button>
      </form>
      ${error ? html`<gf-refused reason=${error}></gf-refused>` : nothing}
      ${
        changed && this.other && this.other.of === session.trace?.id
          ? html`<gf-matrix
                meaning="key"
                most="720"
                .top=${cut ? long : 0}
                .data=${changed.distances.flat().map(num)}
                .rows=${changed.distances.length}
                .columns=${n}
                .row=${changed.distances.length - 1}
                .column=${changed.first ?? 0}
                rowName="after"
                rowHeight="26"
                columnName="token"
                .rowLabel=${floor}
                .columnLabel=${(i: number) => `${i} ${visible(session.tokens[i]?.text ?? "")}`}
                label="How far the two streams are apart"
              ></gf-matrix>
              <p class="small">
                ${
                  cut
                    ? html`Of the ${n} tokens that both have, the cells are the same to within
                        <span class="num">${short(apart)}</span>: what is left of the end does not know where it is.`
                    : changed.first === null
                      ? "Nothing differs."
                      : html`${changed.token === null ? nothing : `The texts part at token ${changed.token}. `}${
                            changed.edited
                              ? html`An edit of <code>${changed.edited.point}</code> reaches token
                                  ${changed.edited.position}, ${floor(changed.edited.row)}. `
                              : nothing
                          }Left
                          of token ${changed.first} nothing changes: the largest distance there is
                          <span class="num">${short(changed.before)}</span>.`
                }
              </p>
              <gf-receipt .of=${changed.receipt}></gf-receipt>`
          : nothing
      }
    </div>`;
  }

  #fork = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    const { session } = this,
      { trace, here } = session,
      text = String(new FormData(event.target as HTMLFormElement).get("text"));
    if (!trace) return;
    await this.#read(async () => {
      const { tokens } = await session.ask<{ tokens: { id: number; special: boolean }[] }>(
        session.ofModel("tokens", { text }),
      );
      const ids = trace.tokens.map((token) => token.id);
      ids.splice(here.query, 1, ...tokens.filter((token) => !token.special).map((token) => token.id));
      return ids;
    });
  };

  /** Another text, token by token, beside this one. */
  async #read(ids: () => number[] | Promise<number[]>): Promise<void> {
    const { session } = this,
      { trace } = session;
    if (!trace) return;
    this.wrong = "";
    try {
      const other = await session.transport.post<TraceInfo>("/v1/traces", {
        model: session.model,
        prompt: await ids(),
        max_tokens: 0,
      });
      this.other = { of: trace.id, trace: other };
    } catch (error) {
      this.wrong = error instanceof Refused ? error.message : String(error);
    }
  }
}
