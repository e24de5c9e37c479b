/** View 9. What each head does on this text: its scores for six roles, and the head behind each of them. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "../parts/bars.js";
import "../parts/matrix.js";
import "../parts/cause.js";
import "../parts/receipt.js";
import "../parts/refused.js";
import { Ask } from "../ask.js";
import { count, num, percent } from "../lib/number.js";
import type { Pick } from "../parts/matrix.js";
import type { Roles } from "../shapes.js";
import { Follower } from "../view.js";

const TITLES: Record<string, string> = {
  previous_token: "previous token", first_token: "first token", duplicate: "duplicate", induction: "induction", self: "itself", entropy: "spread",
};
const REPEATED = new Set(["duplicate", "induction"]); // seen only where something stands twice

@customElement("gf-view-roles")
export class RolesView extends Follower {
  #roles = new Ask<Roles>(this, () => this.session.ofTrace("roles", {}));

  static override styles = [Follower.styles, css`
    .maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1.2rem 1.5rem; }
    .one button.name { width: 100%; text-align: left; border: 0; border-bottom: 2px solid var(--line); border-radius: 0; background: none; padding: 0.2rem 0; margin-bottom: 0.5rem; color: inherit; }
    .one button.name[aria-pressed="true"] { border-color: var(--ink); font-weight: 650; color: var(--ink); }
    .best { display: grid; grid-template-columns: minmax(0, 24rem); gap: 0.6rem; }
  `];

  override render() {
    const roles = this.#roles.value, error = this.#roles.error;
    return html`<section class="stack"><h2>What each head does</h2>
      ${error ? html`<gf-refused reason=${error.message}></gf-refused>` : roles ? this.#show(roles) : html`<p class="soft" role="status">measuring every head on this text …</p>`}</section>`;
  }

  #show(roles: Roles) {
    const { session } = this, { here } = session, chosen = session.place.more["role"] ?? "induction";
    return html`<p>Measured on this text: the share of its attention that a head gives to keys in a known relation to the query. One field is a head; rows are blocks.</p>
      <div class="maps">${Object.entries(roles.scores).map(([role, scores]) => html`<div class="one">
          <button class="name" aria-pressed=${role === chosen} title=${roles.meanings[role] ?? nothing} @click=${() => session.more({ role })}>${TITLES[role] ?? role}</button>
          ${roles.queries[role] ? html`<gf-matrix shares brief most="190" .data=${scores.flat().map(num)} .rows=${scores.length} .columns=${scores[0]?.length ?? 0} .row=${here.layer} .column=${here.head}
            rowName="block" columnName="head" label="${TITLES[role] ?? role}" @pick=${(event: CustomEvent<Pick>) => { session.more({ role }); session.go({ layer: event.detail.row, head: event.detail.column }); }}></gf-matrix>`
            : html`<p class="small soft">No token of this text sees such a key: nothing in it stands twice.</p>`}</div>`)}</div>
      ${this.#best(roles, chosen)}
      <gf-receipt .of=${roles.receipt}></gf-receipt>`;
  }

  #best(roles: Roles, role: string) {
    const scores = roles.scores[role] ?? [], { session } = this;
    const all = scores.flatMap((row, layer) => row.map((score, head) => ({ layer, head, score: num(score) }))).filter((one) => Number.isFinite(one.score));
    const best = all.sort((a, b) => b.score - a.score).slice(0, 6);
    return html`<div class="best"><h3>${TITLES[role] ?? role}: ${roles.meanings[role] ?? ""}</h3>
      ${best.length ? html`<gf-bars pick top="1" label="Heads by this score" .bars=${best.map((one) => ({ label: `block ${one.layer}, head ${one.head}`, value: one.score, text: percent(one.score) }))}
        @pick=${(event: CustomEvent<number>) => { const one = best[event.detail]; if (one) session.visit("cell", { layer: one.layer, head: one.head }); }}></gf-bars>
      <p class="small soft">Mean over the ${count(roles.queries[role] ?? 0)} tokens that see such a key. Click a head to open its evidence.</p>` : nothing}
      ${REPEATED.has(role) && session.live ? html`<p><button @click=${() => this.#twice()}>Read this text twice over</button></p>` : nothing}
      <p class="small">A head that looks where a role says need not be what makes the model say so.</p></div>
      <gf-cause .session=${session} label="Take head ${session.here.head} of block ${session.here.layer} out, and write anew" .edit=${{ op: "ablate", point: `blocks.${session.here.layer}.attn.z`, head: session.here.head }}></gf-cause>`;
  }

  #twice(): void {
    const { place } = this.session;
    this.session.go({ text: `${place.text}\n${place.text}`, write: 0, query: -1, key: -1 });
  }
}
