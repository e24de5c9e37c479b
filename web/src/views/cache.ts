/** Cache view: the size of the key-value cache, the attention that each token received, and the time saved. */
import { css, html, nothing } from "lit";
import { customElement, state } from "lit/decorators.js";
import { setStyle } from "../lib/set_style.js";
import "../components/bars.js";
import "../components/matrix.js";
import "../components/causal_test.js";
import "../components/receipt.js";
import "../components/stepper.js";
import "../components/notice.js";
import "../components/head_picker.js";
import { Resource } from "../resource.js";
import { bytes, count, fixed, num, short, type Num } from "../lib/number.js";
import type { Pick } from "../components/matrix.js";
import { visibleText } from "../components/token.js";
import type { CacheSpeed, CacheView as Cache } from "../api_types.js";
import { SessionElement } from "../view.js";

@customElement("gf-view-cache")
export class CacheView extends SessionElement {
  @state() private slots = Infinity; // number of processed tokens to show
  #cache = new Resource<Cache>(this, () => this.session.traceViewPath("cache", { layer: this.session.cursor.layer }));
  #speed = new Resource<CacheSpeed>(this, () => this.session.traceViewPath("cache_speed", {}));

  static override styles = [
    SessionElement.styles,
    css`
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
        <h2>Key-value cache</h2>
        <gf-head-picker nohead .session=${this.session}></gf-head-picker>
      </div>
      ${error ? html`<gf-notice reason=${error.message}></gf-notice>` : cache ? this.#show(cache) : nothing}
    </section>`;
  }

  #show(cache: Cache) {
    const { session } = this,
      n = session.tokens.length,
      at = Math.min(n, this.slots),
      name = (i: number) => `${i} ${visibleText(session.tokens[i]?.text ?? "")}`;
    const disabled = session.address.options["cache"] === "off",
      processed = this.#processed(at, cache.n_prompt, disabled);
    const decoding = at > cache.n_prompt,
      source = cache.layers.some((one) => one.source);
    return html`<p>
        The cache stores ${cache.layers[0]?.contents} of every token in every block. They are computed once and used by
        all later tokens. After ${count(at)} of ${count(n)} tokens the cache has a size of
        <span class="num"
          >${bytes(
            cache.layers.reduce(
              (sum, one) => sum + Math.min(at, one.capacity) * one.bytes_per_slot + (one.source?.bytes ?? 0),
              0,
            ),
          )}</span
        >${source ? ", including the source, which is computed once" : nothing}.
      </p>
      <label class="small soft"
        >processed tokens: <span class="num">${at}</span>
        ${at <= cache.n_prompt ? "(prefill: in parallel)" : `(decode: ${at - cache.n_prompt} generated one by one)`}
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
        <span class="row" role="group" aria-label="Cache"
          ><button aria-pressed=${!disabled} @click=${() => session.setOptions({ cache: null })}>cache on</button
          ><button aria-pressed=${disabled} @click=${() => session.setOptions({ cache: "off" })}>
            cache off
          </button></span
        >
      </div>
      <p class="small" role="status">
        ${
          disabled
            ? html`Without a cache, the ${ordinal(at)} token needs the keys and values of all
                <span class="num">${count(at)}</span> tokens to be ${at > cache.n_prompt ? "recomputed" : "computed"}.`
            : at > cache.n_prompt
              ? html`The ${ordinal(at)} token needs <span class="num">1</span> token to be computed; ${count(at - 1)}
                  come from the cache.`
              : html`The <span class="num">${count(at)}</span> prompt tokens are computed in parallel.`
        }
        In total the blocks have processed <span class="num">${count(processed)}</span>
        tokens${
          disabled && at > cache.n_prompt
            ? html`, ${short(processed / this.#processed(at, cache.n_prompt, false), 2)}× as many as with the cache`
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
                <i class=${disabled ? "new" : ""} ${setStyle({ flex: before })}></i
                ><i class=${decoding ? "new" : "free"} ${setStyle({ flex: full - before })}></i
                ><i class="free" ${setStyle({ flex: one.capacity - full })}></i
              ></span>
              <span class="n num">${full}/${count(one.capacity)}</span>
            </div>
            ${
              one.source
                ? html`<div class="layer source">
                    <span>source</span>
                    <span class="slots" role="img" aria-label="${one.source.slots} slots of the source, all filled"
                      ><i ${setStyle({ flex: one.source.slots })}></i
                      ><i class="free" ${setStyle({ flex: Math.max(0, one.capacity - one.source.slots) })}></i
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
          <span class="v">values</span>;${disabled ? " all recomputed for this token" : " pale: prompt"}</span
        >
        <span>${cache.layers[0] ? `${bytes(cache.layers[0].bytes_per_slot)} for each token and block` : ""}</span>${
          cache.layers.some((one) => one.window)
            ? html`<span>layers with a sliding window drop older tokens</span>`
            : nothing
        }
      </p>
      <h3>Attention that each cached token received in block ${cache.layer}</h3>
      ${this.#mass(
        cache.mass,
        name,
        "Attention received",
        (pick) => session.navigate({ head: pick.row, query: pick.column }),
        session.cursor.query,
      )}
      ${
        cache.source_mass
          ? html`<h3>Attention that each source token received</h3>
              ${this.#mass(
                cache.source_mass,
                (i) => `${i} ${visibleText(session.trace?.source?.tokens[i]?.text ?? "")}`,
                "Attention that the source received",
                (pick) => session.navigate({ head: pick.row, key: pick.column }),
                session.cursor.key,
              )}`
          : nothing
      }
      <gf-receipt .of=${cache.receipt}></gf-receipt>
      <gf-causal-test
        .session=${session}
        label="Mask token ${session.cursor.query} for all later tokens in block ${cache.layer}"
        .edit=${
          session.cursor.query < n - 1
            ? {
                op: "knockout",
                point: `blocks.${cache.layer}.attn.scores`,
                query: Array.from({ length: n - 1 - session.cursor.query }, (_, i) => session.cursor.query + 1 + i),
                key: session.cursor.query,
              }
            : null
        }
      ></gf-causal-test>
      ${this.#timing()}`;
  }

  #mass(mass: Num[][], name: (i: number) => string, label: string, pick: (pick: Pick) => void, column: number) {
    return html`<gf-matrix
      meaning="key"
      maxWidth="720"
      .data=${mass.flat().map(num)}
      .rows=${mass.length}
      .columns=${mass[0]?.length ?? 0}
      .row=${this.session.cursor.head}
      .column=${column}
      rowName="head"
      rowHeight=${mass.length > 16 ? 12 : 22}
      columnName="token"
      .columnLabel=${name}
      label=${label}
      @pick=${(event: CustomEvent<Pick>) => pick(event.detail)}
    ></gf-matrix>`;
  }

  /** The number of tokens that the blocks have processed in total, with or without a cache. */
  #processed(at: number, n_prompt: number, disabled: boolean): number {
    if (at <= n_prompt || !disabled) return at;
    return n_prompt + Array.from({ length: at - n_prompt }, (_, i) => n_prompt + i + 1).reduce((a, b) => a + b, 0);
  }

  #timing() {
    const speed = this.#speed.value;
    if (this.#speed.error)
      return html`<gf-notice heading="Measurement failed" reason=${this.#speed.error.message}></gf-notice>`;
    if (!speed) return html`<p class="soft small" role="status">measuring …</p>`;
    return html`<h3>Time for the next token, measured now on this machine</h3>
      <gf-bars
        wide
        label="Milliseconds"
        meaning="key"
        .bars=${[
          {
            label: "with cache: one token",
            value: speed.decode,
            text: `${fixed(speed.decode, 2)} ms`,
            chosen: true,
          },
          {
            label: `without cache: all ${speed.tokens} tokens`,
            value: speed.uncached,
            text: `${fixed(speed.uncached, 2)} ms`,
          },
          {
            label: `prefill of ${speed.tokens - 1} tokens`,
            value: speed.prefill,
            text: `${fixed(speed.prefill, 2)} ms`,
          },
          ...(speed.source === null
            ? []
            : [
                {
                  label: "encoding the source, once",
                  value: speed.source,
                  text: `${fixed(speed.source, 2)} ms`,
                },
              ]),
        ]}
      ></gf-bars>
      <p class="small">
        ${
          speed.uncached > speed.decode
            ? html`The cache makes it <span class="num">${short(speed.uncached / speed.decode, 2)}×</span> as fast,`
            : "At this length the cache saves no time,"
        }
        with the same logits.
      </p>
      <gf-receipt .of=${speed.receipt}></gf-receipt>`;
  }
}

const ordinal = (n: number): string =>
  `${n}${n % 100 > 10 && n % 100 < 14 ? "th" : (["th", "st", "nd", "rd"][n % 10] ?? "th")}`;
