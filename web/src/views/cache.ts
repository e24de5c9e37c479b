/** View 12. What the cache holds, how much attention each kept token received, and what it saves. */
import { css, html, nothing } from "lit";
import { customElement, state } from "lit/decorators.js";
import { look } from "../lib/look.js";
import "../parts/bars.js";
import "../parts/matrix.js";
import "../parts/cause.js";
import "../parts/receipt.js";
import "../parts/stepper.js";
import "../parts/refused.js";
import "../parts/where.js";
import { Ask } from "../ask.js";
import { bytes, count, fixed, num, short, type Num } from "../lib/number.js";
import type { Pick } from "../parts/matrix.js";
import { visible } from "../parts/token.js";
import type { CacheSpeed, CacheView as Cache } from "../shapes.js";
import { Follower } from "../view.js";

@customElement("gf-view-cache")
export class CacheView extends Follower {
  @state() private slots = Infinity; // stepped through: as many tokens as have passed
  #cache = new Ask<Cache>(this, () => this.session.ofTrace("cache", { layer: this.session.here.layer }));
  #speed = new Ask<CacheSpeed>(this, () => this.session.ofTrace("cache_speed", {}));

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
      .layers {
        display: grid;
        gap: 4px;
      }
      .layer {
        display: grid;
        grid-template-columns: 4.2rem minmax(0, 1fr) 5rem;
        gap: 0.8rem;
        align-items: center;
        font-size: 0.82rem;
      }
      .slots {
        display: flex;
        height: 1.05rem;
        border-radius: 3px;
        overflow: hidden;
        background: var(--wash);
      }
      .slots i {
        background: linear-gradient(var(--key) 0 50%, var(--value) 50%);
        opacity: 0.55;
      }
      .slots i.new {
        opacity: 1;
      }
      .slots i.free {
        background: none;
      }
      .layer.source {
        margin-bottom: 0.35rem;
        color: var(--soft);
      }
      .n {
        text-align: right;
      }
      input[type="range"] {
        width: 100%;
        padding: 0;
        accent-color: var(--ink);
      }
      .stack > p.legend {
        display: flex;
        flex-wrap: wrap;
        gap: 0.3rem 1.2rem;
        font-size: 0.8rem;
        color: var(--soft);
      }
    `,
  ];

  override render() {
    const cache = this.#cache.value,
      error = this.#cache.error;
    return html`<section class="stack">
      <div class="title">
        <h2>What the cache keeps</h2>
        <gf-where nohead .session=${this.session}></gf-where>
      </div>
      ${error ? html`<gf-refused reason=${error.message}></gf-refused>` : cache ? this.#show(cache) : nothing}
    </section>`;
  }

  #show(cache: Cache) {
    const { session } = this,
      n = session.tokens.length,
      at = Math.min(n, this.slots),
      name = (i: number) => `${i} ${visible(session.tokens[i]?.text ?? "")}`;
    const off = session.place.more["cache"] === "off",
      done = this.#done(at, cache.n_prompt, off);
    const decoding = at > cache.n_prompt,
      read = cache.layers.some((one) => one.source);
    return html`<p>
        Of every token, in every block, ${cache.layers[0]?.what}: computed once, read by all that come after. After
        ${count(at)} of ${count(n)} tokens the caches hold
        <span class="num"
          >${bytes(
            cache.layers.reduce(
              (sum, one) => sum + Math.min(at, one.capacity) * one.bytes_per_slot + (one.source?.bytes ?? 0),
              0,
            ),
          )}</span
        >${read ? ", the source's part included: made with the first token, and never again" : nothing}.
      </p>
      <label class="small soft"
        >tokens that have passed:
        <span class="num">${at}</span>
        ${at <= cache.n_prompt ? "(read in one go: prefill)" : `(${at - cache.n_prompt} written one by one: decode)`}
        <input
          type="range"
          min="1"
          max=${n}
          .value=${String(at)}
          @input=${(event: Event) => (this.slots = Number((event.target as HTMLInputElement).value))}
      /></label>
      <div class="row">
        <gf-stepper
          .session=${session}
          what="token"
          .at=${at - 1}
          .n=${n}
          @step=${(event: CustomEvent<number>) => (this.slots = event.detail + 1)}
          >token by token</gf-stepper
        >
        <span class="row" role="group" aria-label="The cache"
          ><button aria-pressed=${!off} @click=${() => session.more({ cache: null })}>cache on</button
          ><button aria-pressed=${off} @click=${() => session.more({ cache: "off" })}>cache off</button></span
        >
      </div>
      <p class="small" role="status">
        ${
          off
            ? html`Nothing is kept: for the ${ordinal(at)} token, keys and values of all
                <span class="num">${count(at)}</span> are computed${at > cache.n_prompt ? " again" : ""}.`
            : html`For the ${ordinal(at)} token,
                <span class="num">${count(at > cache.n_prompt ? 1 : at)}</span>
                ${
                  at > cache.n_prompt
                    ? `track is computed, and ${count(at - 1)} are read`
                    : "tracks are computed, all at once"
                }.`
        }
        Up to here <span class="num">${count(done)}</span> tracks went through the
        blocks${
          off && at > cache.n_prompt
            ? html`, ${short(done / this.#done(at, cache.n_prompt, false), 2)}× as many as with the cache`
            : nothing
        }.
      </p>
      <div class="layers">
        ${cache.layers.map((one) => {
          const full = Math.min(at, one.capacity),
            before = Math.min(full, cache.n_prompt);
          return html`<div class="layer">
              <span>block ${one.layer}</span
              ><span class="slots" role="img" aria-label="${full} of ${one.capacity} slots filled">
                <i class=${off ? "new" : ""} ${look({ flex: before })}></i
                ><i class=${decoding ? "new" : "free"} ${look({ flex: full - before })}></i
                ><i class="free" ${look({ flex: one.capacity - full })}></i
              ></span>
              <span class="n num">${full}/${count(one.capacity)}</span>
            </div>
            ${
              one.source
                ? html`<div class="layer source">
                    <span>its source</span>
                    <span class="slots" role="img" aria-label="${one.source.slots} slots of the source, all filled"
                      ><i ${look({ flex: one.source.slots })}></i
                      ><i class="free" ${look({ flex: Math.max(0, one.capacity - one.source.slots) })}></i
                    ></span>
                    <span class="n num">${one.source.slots}</span>
                  </div>`
                : nothing
            }`;
        })}
      </div>
      <p class="legend">
        <span
          ><span class="k">keys</span> and
          <span class="v">values</span>;${off ? " all computed for this token" : " pale: from the prompt"}</span
        >
        <span>${cache.layers[0] ? `${bytes(cache.layers[0].bytes_per_slot)} for each token and block` : ""}</span
        >${cache.layers.some((one) => one.window) ? html`<span>a window forgets what leaves it</span>` : nothing}
      </p>
      <h3>How much attention each kept token received, in block ${cache.layer}</h3>
      ${this.#mass(
        cache.mass,
        name,
        "Attention received",
        (pick) => session.go({ head: pick.row, query: pick.column }),
        session.here.query,
      )}
      ${
        cache.source_mass
          ? html`<h3>And each token of the source</h3>
              ${this.#mass(
                cache.source_mass,
                (i) => `${i} ${visible(session.trace?.source?.tokens[i]?.text ?? "")}`,
                "Attention that the source received",
                (pick) => session.go({ head: pick.row, key: pick.column }),
                session.here.key,
              )}`
          : nothing
      }
      <gf-receipt .of=${cache.receipt}></gf-receipt>
      <gf-cause
        .session=${session}
        label="Hide token ${session.here.query} from all that follow, in block ${cache.layer}, and write anew"
        .edit=${
          session.here.query < n - 1
            ? {
                op: "knockout",
                point: `blocks.${cache.layer}.attn.scores`,
                query: Array.from({ length: n - 1 - session.here.query }, (_, i) => session.here.query + 1 + i),
                key: session.here.query,
              }
            : null
        }
      ></gf-cause>
      ${this.#saved()}`;
  }

  #mass(mass: Num[][], name: (i: number) => string, label: string, pick: (pick: Pick) => void, column: number) {
    return html`<gf-matrix
      meaning="key"
      most="720"
      .data=${mass.flat().map(num)}
      .rows=${mass.length}
      .columns=${mass[0]?.length ?? 0}
      .row=${this.session.here.head}
      .column=${column}
      rowName="head"
      rowHeight=${mass.length > 16 ? 12 : 22}
      columnName="token"
      .columnLabel=${name}
      label=${label}
      @pick=${(event: CustomEvent<Pick>) => pick(event.detail)}
    ></gf-matrix>`;
  }

  /** How many tracks the blocks have computed after so many tokens: the prompt at once, then one each, or all each time. */
  #done(at: number, n_prompt: number, off: boolean): number {
    if (at <= n_prompt || !off) return at;
    return n_prompt + Array.from({ length: at - n_prompt }, (_, i) => n_prompt + i + 1).reduce((a, b) => a + b, 0);
  }

  #saved() {
    const speed = this.#speed.value;
    if (this.#speed.error)
      return html`<gf-refused heading="Not measured" reason=${this.#speed.error.message}></gf-refused>`;
    if (!speed) return html`<p class="soft small" role="status">measuring what it saves …</p>`;
    return html`<h3>The next token with the cache, and without: measured now, on this machine</h3>
      <gf-bars
        wide
        label="Milliseconds"
        meaning="key"
        .bars=${[
          {
            label: "with the cache: its own track alone",
            value: speed.decode,
            text: `${fixed(speed.decode, 2)} ms`,
            chosen: true,
          },
          {
            label: `without: all ${speed.tokens} tokens again`,
            value: speed.without,
            text: `${fixed(speed.without, 2)} ms`,
          },
          {
            label: `(reading ${speed.tokens - 1} tokens at once)`,
            value: speed.prefill,
            text: `${fixed(speed.prefill, 2)} ms`,
          },
          ...(speed.source === null
            ? []
            : [
                {
                  label: "(reading the source, once either way)",
                  value: speed.source,
                  text: `${fixed(speed.source, 2)} ms`,
                },
              ]),
        ]}
      ></gf-bars>
      <p class="small">
        ${
          speed.without > speed.decode
            ? html`<span class="num">${short(speed.without / speed.decode, 2)}×</span> as fast with it,`
            : "At this length it saves nothing,"
        }
        and the same logits.
      </p>
      <gf-receipt .of=${speed.receipt}></gf-receipt>`;
  }
}

const ordinal = (n: number): string =>
  `${n}${n % 100 > 10 && n % 100 < 14 ? "th" : (["th", "st", "nd", "rd"][n % 10] ?? "th")}`;
