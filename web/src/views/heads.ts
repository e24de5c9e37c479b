/** View 7. The heads side by side, each through its own slice of W_o, and their sum. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "../parts/cause.js";
import "../parts/receipt.js";
import "../parts/refused.js";
import "../parts/strip.js";
import "../parts/where.js";
import { Ask } from "../ask.js";
import { num, percent, short, type Num } from "../lib/number.js";
import { largest } from "../lib/tensor.js";
import { quoted } from "../parts/token.js";
import type { Heads } from "../shapes.js";
import { Follower } from "../view.js";

@customElement("gf-view-heads")
export class HeadsView extends Follower {
  #heads = new Ask<Heads>(this, () =>
    this.session.ofTrace("heads", { layer: this.session.here.layer, position: this.session.here.query }),
  );

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
      .wrap {
        overflow-x: auto;
      }
      table {
        border-collapse: separate;
        border-spacing: 0 0.35rem;
        width: 100%;
        min-width: 34rem;
        font-size: 0.82rem;
      }
      th {
        font-weight: 400;
        text-align: left;
        white-space: nowrap;
        padding-right: 0.8rem;
        width: 1%;
      }
      td.n {
        text-align: right;
        white-space: nowrap;
        padding-left: 0.8rem;
        width: 1%;
      }
      thead th {
        color: var(--soft);
        font-size: 0.76rem;
        padding-right: 0;
      }
      thead th.n {
        text-align: right;
        padding-left: 0.8rem;
      }
      td.z {
        width: 24%;
        padding-right: 1rem;
      }
      tr.muted {
        opacity: 0.45;
      }
      tr.here th {
        font-weight: 650;
      }
      tr.sum td,
      tr.sum th {
        padding-top: 0.5rem;
      }
      gf-strip {
        --height: 1.15rem;
      }
      th button {
        padding: 0.05rem 0.5rem;
        font-size: 0.78rem;
        margin-left: 0.5rem;
      }
      .none td {
        color: var(--soft);
      }
    `,
  ];

  /** Heads taken out of the sum shown here; the text is not written anew. */
  get #muted(): Set<number> {
    return new Set((this.session.place.more["mute"] ?? "").split(".").filter(Boolean).map(Number));
  }

  override render() {
    const heads = this.#heads.value,
      error = this.#heads.error;
    return html`<section class="stack">
      <div class="title">
        <h2>The heads, put together by W<sub>o</sub></h2>
        <gf-where .session=${this.session}></gf-where>
      </div>
      ${error ? html`<gf-refused reason=${error.message}></gf-refused>` : heads ? this.#show(heads) : nothing}
    </section>`;
  }

  #show(heads: Heads) {
    const { session } = this,
      muted = this.#muted,
      sorted = session.place.more["by"] === "share";
    const order = heads.parts.map((_, i) => i);
    if (sorted) order.sort((a, b) => num(heads.shares[b] as Num) - num(heads.shares[a] as Num));
    const ztop = largest(heads.z.flat().map(num)).size,
      top = largest([...heads.parts.flat(), ...heads.out].map(num)).size;
    const left = heads.out.map(
      (x, i) => num(x) - [...muted].reduce((sum, head) => sum + num(heads.parts[head]?.[i] ?? 0), 0),
    );
    const away =
      Math.hypot(...left.map((x, i) => x - num(heads.out[i] as Num))) /
      Math.max(1e-30, Math.hypot(...heads.out.map(num)));
    return html`<p>
        What attention adds for ${quoted(session.tokens[heads.position]?.text)} in block ${heads.layer}: z of all heads,
        side by side, times W<sub>o</sub>. Cut W<sub>o</sub> along the heads, and it is a sum.
      </p>
      <div class="row">
        <button aria-pressed=${sorted} @click=${() => session.more({ by: sorted ? null : "share" })}>
          sort by share
        </button>
        ${
          muted.size
            ? html`<button @click=${() => session.more({ mute: null })}>all heads again</button>
                <span class="small"
                  >without ${[...muted].map((i) => `head ${i}`).join(", ")}: what is added changes by
                  <span class="num">${percent(away)}</span> of its length</span
                >`
            : nothing
        }
      </div>
      <div class="wrap" tabindex="0" role="region" aria-label="The heads">
        <table>
          <thead>
            <tr>
              <th>head</th>
              <th><span class="v">z</span>, ${heads.z[0]?.length} numbers</th>
              <th>through its slice of W<sub>o</sub>, ${heads.out.length} numbers</th>
              <th class="n">length</th>
              <th class="n">share</th>
            </tr>
          </thead>
          <tbody>
            ${order.map(
              (i) =>
                html`<tr class="${muted.has(i) ? "muted" : ""} ${i === session.here.head ? "here" : ""}">
                  <th scope="row">
                    ${i}<button aria-pressed=${muted.has(i)} aria-label="mute head ${i}" @click=${() => this.#mute(i)}>
                      mute
                    </button>
                  </th>
                  <td class="z">
                    <gf-strip
                      quiet
                      meaning="value"
                      .data=${heads.z[i] ?? []}
                      .top=${ztop}
                      label="z of head ${i}"
                    ></gf-strip>
                  </td>
                  <td>
                    <gf-strip
                      quiet
                      meaning="residual"
                      .data=${heads.parts[i] ?? []}
                      .top=${top}
                      label="what head ${i} writes"
                    ></gf-strip>
                  </td>
                  <td class="n num">${short(heads.norms[i] as Num)}</td>
                  <td class="n num">${percent(heads.shares[i] as Num)}</td>
                </tr>`,
            )}
            ${
              heads.bias
                ? html`<tr>
                    <th scope="row">bias</th>
                    <td></td>
                    <td>
                      <gf-strip quiet meaning="residual" .data=${heads.bias} .top=${top} label="bias of W_o"></gf-strip>
                    </td>
                    <td></td>
                    <td class="n num">${percent(heads.bias_share)}</td>
                  </tr>`
                : nothing
            }
            <tr class="sum">
              <th scope="row">sum</th>
              <td></td>
              <td>
                <gf-strip
                  meaning="residual"
                  .data=${muted.size ? left : heads.out}
                  .top=${top}
                  label="what attention writes"
                  >${muted.size ? "without the muted heads" : "what attention writes"}</gf-strip
                >
              </td>
              <td class="n num">${short(Math.hypot(...(muted.size ? left : heads.out.map(num))))}</td>
              <td></td>
            </tr>
          </tbody>
        </table>
      </div>
      <p class="small soft">
        A share is the part's projection on the sum, over the sum's length: all shares add up to 100%, and one that
        works against it is negative.
      </p>
      <gf-receipt .of=${heads.receipt}></gf-receipt>
      <gf-cause
        .session=${session}
        label="Take head ${session.here.head} of block ${heads.layer} out, and write anew"
        .edit=${{ op: "ablate", point: `blocks.${heads.layer}.attn.z`, head: session.here.head }}
      ></gf-cause>`;
  }

  #mute(head: number): void {
    const muted = this.#muted;
    if (!muted.delete(head)) muted.add(head);
    this.session.more({ mute: muted.size ? [...muted].sort((a, b) => a - b).join(".") : null });
  }
}
