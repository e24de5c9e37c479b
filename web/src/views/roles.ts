/** Head roles view: scores of every head for six attention patterns, with an example of each. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "../components/bars.js";
import "../components/matrix.js";
import "../components/causal_test.js";
import "../components/receipt.js";
import "../components/notice.js";
import { count, num, percent } from "../lib/number.js";
import type { Pick } from "../components/matrix.js";
import { inlineToken } from "../components/token.js";
import { RowStream } from "../row_stream.js";
import type { RoleExample, RoleRow, Roles, TraceInfo } from "../api_types.js";
import { SessionElement } from "../view.js";

export const TITLES: Record<string, string> = {
  previous_token: "previous token",
  duplicate: "duplicate",
  induction: "induction",
  first_token: "first token",
  self: "self",
  entropy: "entropy",
};
/** Results received for a trace: rows of layers, then the complete view. */
interface Received {
  rows: RoleRow[];
  complete: Roles | null;
}
const received = new WeakMap<TraceInfo, Received>();

const REPEATED = new Set(["duplicate", "induction"]); // require a repeated token

@customElement("gf-view-roles")
export class RolesView extends SessionElement {
  #roles = new RowStream<RoleRow, Roles>(
    this,
    () => (this.#received.complete ? null : this.session.traceViewPath("roles", { stream: true })),
    (row, i) => (this.#received.rows[i] = row),
    (complete) => (this.#received.complete = complete),
  );

  static override styles = [
    SessionElement.styles,
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

  get #received(): Received {
    const { trace } = this.session,
      found = (trace && received.get(trace)) ?? { rows: [], complete: null };
    if (trace) received.set(trace, found);
    return found;
  }

  /** The scores of all layers; NaN if pending. */
  #scores(role: string) {
    const { rows, complete } = this.#received,
      heads = this.session.anatomy?.layers.map((layer) => layer.n_heads) ?? [];
    const columns = Math.max(1, ...heads),
      none = () => Array.from({ length: columns }, () => NaN);
    return (
      complete?.scores[role] ??
      heads.map((_, layer) => {
        const one = rows[layer]?.scores[role];
        return one ? [...one, ...none()].slice(0, columns) : none();
      })
    );
  }

  #evidence(role: string, layer: number, head: number): RoleExample | null {
    return (
      (this.#received.complete?.evidence[role]?.[layer] ?? this.#received.rows[layer]?.evidence[role])?.[head] ?? null
    );
  }

  override render() {
    const { complete, rows } = this.#received,
      error = this.#roles.error,
      n = this.session.anatomy?.layers.length ?? 0;
    return html`<section class="stack">
      <h2>Head roles</h2>
      ${
        error
          ? html`<gf-notice reason=${error.message}></gf-notice>`
          : rows.length || complete
            ? this.#show(complete)
            : nothing
      }
      ${complete || error ? nothing : html`<p class="small" role="status">scored ${rows.length} of ${n} blocks …</p>`}
    </section>`;
  }

  #show(roles: Roles | null) {
    const { session } = this,
      { cursor } = session,
      chosen = session.address.options["role"] ?? "induction";
    return html`<p>
        Each score is the fraction of a head's attention, measured on this text, on keys with a given relation to the
        query. Rows are blocks, columns are heads.
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
                  @click=${() => session.setOptions({ role })}
                >
                  ${TITLES[role] ?? role}
                </button>
                ${
                  roles === null || roles.n_queries[role]
                    ? html`<gf-matrix
                        fractions
                        brief
                        maxWidth="190"
                        .data=${scores.flat().map(num)}
                        .rows=${scores.length}
                        .columns=${scores[0]?.length ?? 0}
                        .row=${cursor.layer}
                        .column=${cursor.head}
                        rowName="block"
                        columnName="head"
                        label="${TITLES[role] ?? role}"
                        @pick=${(event: CustomEvent<Pick>) => {
                          session.setOptions({ role });
                          session.navigate({ layer: event.detail.row, head: event.detail.column });
                        }}
                      ></gf-matrix>`
                    : html`<p class="small soft">
                        No token of this text has a key with this relation, because no token occurs twice.
                      </p>`
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
                    if (one) session.navigate({ layer: one.layer, head: one.head });
                  }}
                ></gf-bars>
                <p class="small soft">
                  Mean over the ${count(roles.n_queries[role] ?? 0)} tokens that have such a key. Select a head to see
                  its strongest example in this text.
                </p>`
            : nothing
        }
        ${this.#example(role)}
        ${
          REPEATED.has(role) && session.live
            ? html`<p><button @click=${() => this.#repeatText()}>Repeat the text twice</button></p>`
            : nothing
        }
        <p class="small">A high score does not prove that the head causes the prediction. Use the causal test below.</p>
      </div>
      <gf-causal-test
        .session=${session}
        label="Ablate head ${session.cursor.head} of block ${session.cursor.layer}"
        .edit=${{ op: "ablate", point: `blocks.${session.cursor.layer}.attn.z`, head: session.cursor.head }}
      ></gf-causal-test>`;
  }

  /** The strongest example of the selected head. */
  #example(role: string) {
    const { session } = this,
      { layer, head } = session.cursor,
      found = this.#evidence(role, layer, head),
      text = (i: number) => inlineToken(session.tokens[i]?.text);
    if (!found)
      return html`<p class="small evidence">
        Block ${layer}, head ${head}:
        ${
          role === "entropy"
            ? "entropy is a property of all keys of a query, not of one key."
            : "no token of this text has such a key."
        }
      </p>`;
    const after = role === "induction" ? html`, which follows ${text(found.key - 1)}` : nothing;
    return html`<p class="small evidence">
      Block ${layer}, head ${head} scores highest at token ${found.query}: ${text(found.query)} puts
      <span class="num">${percent(found.share)}</span> of its attention on ${text(found.key)}, token
      ${found.key}${after}.
      <button @click=${() => session.openView("cell", { query: found.query, key: found.key })}>
        Open in attention view
      </button>
    </p>`;
  }

  #repeatText(): void {
    const { address } = this.session;
    this.session.navigate({ text: `${address.text}\n${address.text}`, max_tokens: 0, query: -1, key: -1 });
  }
}
