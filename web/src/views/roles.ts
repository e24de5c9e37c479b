/** View 9. What each head does on this text: its scores for six roles, and the head behind each of them. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "../parts/bars.js";
import "../parts/matrix.js";
import "../parts/cause.js";
import "../parts/receipt.js";
import "../parts/refused.js";
import { count, num, percent } from "../lib/number.js";
import type { Pick } from "../parts/matrix.js";
import { quoted } from "../parts/token.js";
import { Rows } from "../rows.js";
import type { Evidence, RoleRow, Roles, TraceInfo } from "../shapes.js";
import { Follower } from "../view.js";

export const TITLES: Record<string, string> = {
  previous_token: "previous token",
  duplicate: "duplicate",
  induction: "induction",
  first_token: "first token",
  self: "itself",
  entropy: "spread",
};
/** What has come of a trace so far: layers, then the whole. */
interface Come {
  rows: RoleRow[];
  whole: Roles | null;
}
const come = new WeakMap<TraceInfo, Come>();

const REPEATED = new Set(["duplicate", "induction"]); // seen only where something stands twice

@customElement("gf-view-roles")
export class RolesView extends Follower {
  #roles = new Rows<RoleRow, Roles>(
    this,
    () => (this.#come.whole ? null : this.session.ofTrace("roles", { stream: true })),
    (row, i) => (this.#come.rows[i] = row),
    (whole) => (this.#come.whole = whole),
  );

  static override styles = [
    Follower.styles,
    css`
      .maps {
        display: grid;
        grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr));
        gap: 1.2rem 1.5rem;
      }
      .one button.name {
        width: 100%;
        text-align: left;
        border: 0;
        border-bottom: 2px solid var(--line);
        border-radius: 0;
        background: none;
        padding: 0.2rem 0;
        margin-bottom: 0.5rem;
        color: inherit;
      }
      .one button.name[aria-pressed="true"] {
        border-color: var(--ink);
        font-weight: 650;
        color: var(--ink);
      }
      .best {
        display: grid;
        grid-template-columns: minmax(0, 24rem);
        gap: 0.6rem;
      }
    `,
  ];

  get #come(): Come {
    const { trace } = this.session,
      found = (trace && come.get(trace)) ?? { rows: [], whole: null };
    if (trace) come.set(trace, found);
    return found;
  }

  /** The scores of the layers that have come; what has not is no number. */
  #scores(role: string) {
    const { rows, whole } = this.#come,
      heads = this.session.anatomy?.layers.map((layer) => layer.n_heads) ?? [];
    const most = Math.max(1, ...heads),
      none = () => Array.from({ length: most }, () => NaN);
    return (
      whole?.scores[role] ??
      heads.map((_, layer) => {
        const one = rows[layer]?.scores[role];
        return one ? [...one, ...none()].slice(0, most) : none();
      })
    );
  }

  #evidence(role: string, layer: number, head: number): Evidence | null {
    return (this.#come.whole?.evidence[role]?.[layer] ?? this.#come.rows[layer]?.evidence[role])?.[head] ?? null;
  }

  override render() {
    const { whole, rows } = this.#come,
      error = this.#roles.error,
      n = this.session.anatomy?.layers.length ?? 0;
    return html`<section class="stack">
      <h2>What each head does</h2>
      ${
        error
          ? html`<gf-refused reason=${error.message}></gf-refused>`
          : rows.length || whole
            ? this.#show(whole)
            : nothing
      }
      ${
        whole || error
          ? nothing
          : html`<p class="soft small" role="status">measured: ${rows.length} of ${n} blocks …</p>`
      }
    </section>`;
  }

  #show(roles: Roles | null) {
    const { session } = this,
      { here } = session,
      chosen = session.place.more["role"] ?? "induction";
    return html`<p>
        Measured on this text: the share of its attention that a head gives to keys in a known relation to the query.
        One field is a head; rows are blocks.
      </p>
      <div class="maps">
        ${Object.keys(TITLES)
          .map((role) => ({ role, scores: this.#scores(role) }))
          .map(
            ({ role, scores }) =>
              html`<div class="one">
                <button
                  class="name"
                  aria-pressed=${role === chosen}
                  title=${roles?.meanings[role] ?? nothing}
                  @click=${() => session.more({ role })}
                >
                  ${TITLES[role] ?? role}
                </button>
                ${
                  roles === null || roles.queries[role]
                    ? html`<gf-matrix
                        shares
                        brief
                        most="190"
                        .data=${scores.flat().map(num)}
                        .rows=${scores.length}
                        .columns=${scores[0]?.length ?? 0}
                        .row=${here.layer}
                        .column=${here.head}
                        rowName="block"
                        columnName="head"
                        label="${TITLES[role] ?? role}"
                        @pick=${(event: CustomEvent<Pick>) => {
                          session.more({ role });
                          session.go({ layer: event.detail.row, head: event.detail.column });
                        }}
                      ></gf-matrix>`
                    : html`<p class="small soft">No token of this text sees such a key: nothing in it stands twice.</p>`
                }
              </div>`,
          )}
      </div>
      ${roles ? html`${this.#best(roles, chosen)}<gf-receipt .of=${roles.receipt}></gf-receipt>` : nothing}`;
  }

  #best(roles: Roles, role: string) {
    const scores = roles.scores[role] ?? [],
      { session } = this;
    const all = scores
      .flatMap((row, layer) => row.map((score, head) => ({ layer, head, score: num(score) })))
      .filter((one) => Number.isFinite(one.score));
    const best = all.sort((a, b) => b.score - a.score).slice(0, 6);
    return html`<div class="best">
        <h3>${TITLES[role] ?? role}: ${roles.meanings[role] ?? ""}</h3>
        ${
          best.length
            ? html`<gf-bars
                  pick
                  top="1"
                  label="Heads by this score"
                  .bars=${best.map((one) => ({
                    label: `block ${one.layer}, head ${one.head}`,
                    value: one.score,
                    text: percent(one.score),
                  }))}
                  @pick=${(event: CustomEvent<number>) => {
                    const one = best[event.detail];
                    if (one) session.go({ layer: one.layer, head: one.head });
                  }}
                ></gf-bars>
                <p class="small soft">
                  Mean over the ${count(roles.queries[role] ?? 0)} tokens that see such a key. Pick a head: its clearest
                  place in the text stands below.
                </p>`
            : nothing
        }
        ${this.#proof(role)}
        ${
          REPEATED.has(role) && session.live
            ? html`<p><button @click=${() => this.#twice()}>Read this text twice over</button></p>`
            : nothing
        }
        <p class="small">A head that looks where a role says need not be what makes the model say so.</p>
      </div>
      <gf-cause
        .session=${session}
        label="Take head ${session.here.head} of block ${session.here.layer} out, and write anew"
        .edit=${{ op: "ablate", point: `blocks.${session.here.layer}.attn.z`, head: session.here.head }}
      ></gf-cause>`;
  }

  /** The chosen head's clearest place in the text. */
  #proof(role: string) {
    const { session } = this,
      { layer, head } = session.here,
      found = this.#evidence(role, layer, head),
      text = (i: number) => quoted(session.tokens[i]?.text);
    if (!found)
      return html`<p class="small evidence">
        Block ${layer}, head ${head}:
        ${
          role === "entropy"
            ? "how evenly it looks is of whole rows, not of one key."
            : "no token of this text sees such a key."
        }
      </p>`;
    const after = role === "induction" ? html`, which follows ${text(found.key - 1)}` : nothing;
    return html`<p class="small evidence">
      Block ${layer}, head ${head} is clearest at token ${found.query}: ${text(found.query)} gives
      <span class="num">${percent(found.share)}</span> to ${text(found.key)}, token ${found.key}${after}.
      <button @click=${() => session.visit("cell", { query: found.query, key: found.key })}>Open this cell</button>
    </p>`;
  }

  #twice(): void {
    const { place } = this.session;
    this.session.go({ text: `${place.text}\n${place.text}`, write: 0, query: -1, key: -1 });
  }
}
