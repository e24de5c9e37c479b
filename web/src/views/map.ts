/** Model view: shapes, parameters and measured times of all parts. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import { setStyle } from "../lib/set_style.js";
import "../components/bars.js";
import "../components/receipt.js";
import "../components/notice.js";
import "./flow.js";
import { Resource } from "../resource.js";
import { compact, count, percent } from "../lib/number.js";
import type { Anatomy, Part, Times } from "../api_types.js";
import { SessionElement } from "../view.js";

const TONES: Record<string, string> = {
  embedding: "residual",
  positions: "residual",
  head: "residual",
  attention: "query",
  "cross-attention": "key",
  "feed-forward": "forward",
  norms: "soft",
};

@customElement("gf-view-map")
export class MapView extends SessionElement {
  #times = new Resource<Times>(this, () => this.session.traceViewPath("times", {}));

  static override styles = [
    SessionElement.styles,
    css`
      .share {
        display: flex;
        height: 1.7rem;
        border-radius: 5px;
        overflow: hidden;
        gap: 2px;
      }
      .share span {
        min-width: 2px;
        background: var(--tone);
      }
      .legend {
        display: flex;
        flex-wrap: wrap;
        gap: 0.25rem 1.2rem;
        font-size: 0.82rem;
        margin-top: 0.4rem;
      }
      .legend i {
        display: inline-block;
        width: 0.7rem;
        height: 0.7rem;
        border-radius: 2px;
        background: var(--tone);
        margin-right: 0.4rem;
      }
      table {
        border-collapse: collapse;
        width: 100%;
        font-size: 0.85rem;
      }
      th,
      td {
        text-align: left;
        padding: 0.34rem 0.9rem 0.34rem 0;
        border-bottom: 1px solid var(--line);
        vertical-align: baseline;
        font-weight: 400;
      }
      td.n,
      th.n {
        text-align: right;
        white-space: nowrap;
      }
      tbody th {
        white-space: nowrap;
      }
      thead th {
        color: var(--soft);
        font-size: 0.76rem;
      }
      th button {
        border: 0;
        background: none;
        padding: 0;
        text-decoration: underline;
        text-decoration-color: var(--line);
        text-underline-offset: 3px;
        text-align: left;
      }
      th i {
        display: inline-block;
        width: 0.3rem;
        height: 0.95rem;
        border-radius: 2px;
        background: var(--tone);
        margin-right: 0.6rem;
        vertical-align: -0.14rem;
      }
      .facts {
        display: flex;
        flex-wrap: wrap;
        gap: 0.6rem 2rem;
      }
      .facts div {
        display: grid;
      }
      .facts b {
        font-size: 1.15rem;
        font-weight: 600;
        font-variant-numeric: tabular-nums;
      }
      .facts span {
        font-size: 0.78rem;
        color: var(--soft);
      }
    `,
  ];

  override render() {
    const { anatomy } = this.session,
      times = this.#times.value;
    const totalTime = times ? times.embedding + sum(times.attention) + sum(times.feed_forward) + times.head : 1;
    if (!anatomy) return nothing;
    const first = anatomy.layers[0];
    const facts: [string, string][] = [
      [count(anatomy.parameters), "parameters"],
      [String(anatomy.layers.length), "blocks"],
      [String(anatomy.d_model), "d_model"],
      ...(first
        ? ([
            [
              `${first.n_heads}${first.n_kv_heads !== first.n_heads ? ` (${first.n_kv_heads} k/v)` : ""}`,
              "heads per block",
            ],
            [count(first.d_ff), first.experts ? `neurons in each of ${first.experts} experts` : "neurons per block"],
          ] as [string, string][])
        : []),
      ...(anatomy.encoder.length ? ([[String(anatomy.encoder.length), "encoder blocks"]] as [string, string][]) : []),
      [anatomy.context === null ? "unlimited" : count(anatomy.context), "context length"],
      [anatomy.positions ?? "none", "position encoding"],
      [anatomy.dtype, "data type"],
    ];
    return html`<section class="stack">
      <h2>Model overview</h2>
      ${anatomy.kind === "recurrent" ? nothing : html`<gf-flow .session=${this.session}></gf-flow>`}
      <div class="facts">${facts.map(([value, name]) => html`<div><b>${value}</b><span>${name}</span></div>`)}</div>
      <div>
        <h3>Parameters: ${compact(anatomy.parameters)} in total</h3>
        ${this.#share(Object.entries(anatomy.shares))}
      </div>
      ${
        times
          ? html`<div>
              <h3>Time of a forward pass: ${times.total.toFixed(2)} ms for ${times.tokens} tokens, measured now</h3>
              ${this.#share([
                ["embedding", times.embedding / totalTime],
                ["attention", sum(times.attention) / totalTime],
                ["feed-forward", sum(times.feed_forward) / totalTime],
                ["head", times.head / totalTime],
              ])}
            </div>`
          : nothing
      }
      ${
        this.#times.error
          ? html`<gf-notice heading="Measurement failed" reason=${this.#times.error.message}></gf-notice>`
          : nothing
      }
      <div class="wrap" tabindex="0" role="region" aria-label="Parts of the model">${this.#parts(anatomy, times)}</div>
      <gf-receipt .of=${anatomy.receipt}></gf-receipt>
    </section>`;
  }

  #share(parts: [string, number][]) {
    return html`<div class="share" aria-hidden="true">
        ${parts.map(([kind, share]) => html`<span ${setStyle({ ...tone(kind), flex: share })}></span>`)}
      </div>
      <div class="legend">
        ${parts.map(
          ([kind, share]) =>
            html`<span><i ${setStyle(tone(kind))}></i>${kind} <span class="num">${percent(share)}</span></span>`,
        )}
      </div>`;
  }

  #parts(anatomy: Anatomy, times: Times | null) {
    const took = (part: Part): number | null => {
      if (!times) return null;
      if (part.kind === "embedding") return times.embedding;
      if (part.kind === "attention") return times.attention[part.layer ?? 0] ?? null;
      if (part.kind === "feed-forward") return times.feed_forward[part.layer ?? 0] ?? null;
      return part.kind === "head" ? times.head : null;
    };
    return html`<table>
      <thead>
        <tr>
          <th>part</th>
          <th>matrices</th>
          <th class="n">parameters</th>
          <th class="n">ms</th>
        </tr>
      </thead>
      <tbody>
        ${anatomy.parts.map((part) => {
          const ms = took(part);
          return html`<tr>
            <th scope="row"><i ${setStyle(tone(part.kind))}></i>${this.#partLink(part)}</th>
            <td class="num soft">
              ${part.matrices
                .map(
                  (matrix) =>
                    `${matrix.name
                      .split(".")
                      .slice(part.layer === null ? 0 : 2)
                      .join(".")
                      .replace(/\.weight$/, "")} ${matrix.shape.join("×")}`,
                )
                .join(", ")}
            </td>
            <td class="n num">${count(part.parameters)}</td>
            <td class="n num">${ms === null ? "" : ms.toFixed(2)}</td>
          </tr>`;
        })}${
          anatomy.tied
            ? html`<tr>
                <th scope="row"><i ${setStyle(tone("head"))}></i>head</th>
                <td class="soft">tied to the embedding table</td>
                <td class="n num">0</td>
                <td class="n num">${times ? times.head.toFixed(2) : ""}</td>
              </tr>`
            : nothing
        }
      </tbody>
    </table>`;
  }

  #partLink(part: Part) {
    const view = { attention: "cell", "feed-forward": "block", embedding: "embedding", head: "lens" }[part.kind];
    const name = part.layer === null ? part.kind : `block ${part.layer}, ${part.kind}`;
    if (!view) return name;
    return html`<button @click=${() => this.session.openView(view, part.layer === null ? {} : { layer: part.layer })}>
      ${name}
    </button>`;
  }
}

const tone = (kind: string) => ({ "--tone": `var(--${TONES[kind] ?? "soft"})` });
const sum = (numbers: number[]): number => numbers.reduce((a, b) => a + b, 0);
