/** Head outputs view: the contribution of each head to the attention output, through its slice of W_o. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "../components/causal_test.js";
import "../components/receipt.js";
import "../components/notice.js";
import "../components/strip.js";
import "../components/head_picker.js";
import { Resource } from "../resource.js";
import { num, percent, short, type Num } from "../lib/number.js";
import { largest } from "../lib/tensor.js";
import { inlineToken } from "../components/token.js";
import type { Heads } from "../api_types.js";
import { SessionElement } from "../view.js";

@customElement("gf-view-heads")
export class HeadsView extends SessionElement {
  #heads = new Resource<Heads>(this, () =>
    this.session.traceViewPath("heads", { layer: this.session.cursor.layer, position: this.session.cursor.query }),
  );

  static override styles = [
    SessionElement.styles,
    css`
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

  /** Heads excluded from the sum shown here. */
  get #excluded(): Set<number> {
    return new Set((this.session.address.options["exclude"] ?? "").split(".").filter(Boolean).map(Number));
  }

  override render() {
    const heads = this.#heads.value,
      error = this.#heads.error;
    return html`<section class="stack">
      <div class="title">
        <h2>Head outputs and W<sub>o</sub></h2>
        <gf-head-picker .session=${this.session}></gf-head-picker>
      </div>
      ${error ? html`<gf-notice reason=${error.message}></gf-notice>` : heads ? this.#show(heads) : nothing}
    </section>`;
  }

  #show(heads: Heads) {
    const { session } = this,
      excluded = this.#excluded,
      sorted = session.address.options["sort"] === "contribution";
    const order = heads.parts.map((_, i) => i);
    if (sorted) order.sort((a, b) => num(heads.shares[b] as Num) - num(heads.shares[a] as Num));
    const ztop = largest(heads.z.flat().map(num)).size,
      top = largest([...heads.parts.flat(), ...heads.out].map(num)).size;
    const remaining = heads.out.map(
      (x, i) => num(x) - [...excluded].reduce((sum, head) => sum + num(heads.parts[head]?.[i] ?? 0), 0),
    );
    const change =
      Math.hypot(...remaining.map((x, i) => x - num(heads.out[i] as Num))) /
      Math.max(1e-30, Math.hypot(...heads.out.map(num)));
    return html`<p>
        The attention output for ${inlineToken(session.tokens[heads.position]?.text)} in block ${heads.layer} is the
        concatenation of all head results z times W<sub>o</sub>. It equals the sum over heads of z times the head's
        slice of W<sub>o</sub>.
      </p>
      <div class="row">
        <button aria-pressed=${sorted} @click=${() => session.setOptions({ sort: sorted ? null : "contribution" })}>
          sort by contribution
        </button>
        ${
          excluded.size
            ? html`<button @click=${() => session.setOptions({ exclude: null })}>include all heads</button>
                <span class="small"
                  >without ${[...excluded].map((i) => `head ${i}`).join(", ")} the output changes by
                  <span class="num">${percent(change)}</span> of its norm</span
                >`
            : nothing
        }
      </div>
      <div class="wrap" tabindex="0" role="region" aria-label="Head outputs">
        <table>
          <thead>
            <tr>
              <th>head</th>
              <th><span class="v">z</span>, ${heads.z[0]?.length} values</th>
              <th>z times its slice of W<sub>o</sub>, ${heads.out.length} values</th>
              <th class="n">norm</th>
              <th class="n">contribution</th>
            </tr>
          </thead>
          <tbody>
            ${order.map(
              (i) =>
                html`<tr class="${excluded.has(i) ? "muted" : ""} ${i === session.cursor.head ? "here" : ""}">
                  <th scope="row">
                    ${i}<button
                      aria-pressed=${excluded.has(i)}
                      aria-label="exclude head ${i}"
                      @click=${() => this.#toggle(i)}
                    >
                      exclude
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
                      label="output of head ${i}"
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
                  .data=${excluded.size ? remaining : heads.out}
                  .top=${top}
                  label="attention output"
                  >${excluded.size ? "without the excluded heads" : "attention output"}</gf-strip
                >
              </td>
              <td class="n num">${short(Math.hypot(...(excluded.size ? remaining : heads.out.map(num))))}</td>
              <td></td>
            </tr>
          </tbody>
        </table>
      </div>
      <p class="small soft">
        The contribution is the projection of a head's output onto the sum, relative to the norm of the sum.
        Contributions add up to 100% and can be negative.
      </p>
      <gf-receipt .of=${heads.receipt}></gf-receipt>
      <gf-causal-test
        .session=${session}
        label="Ablate head ${session.cursor.head} of block ${heads.layer}"
        .edit=${{ op: "ablate", point: `blocks.${heads.layer}.attn.z`, head: session.cursor.head }}
      ></gf-causal-test>`;
  }

  #toggle(head: number): void {
    const excluded = this.#excluded;
    if (!excluded.delete(head)) excluded.add(head);
    this.session.setOptions({ exclude: excluded.size ? [...excluded].sort((a, b) => a - b).join(".") : null });
  }
}
