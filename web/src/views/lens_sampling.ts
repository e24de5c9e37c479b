/** Sampling: the distribution after each stage, and samples drawn from it. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import "../components/bars.js";
import "../components/receipt.js";
import "../components/notice.js";
import { Resource } from "../resource.js";
import { count, num, percent, type Num } from "../lib/number.js";
import { inlineToken } from "../components/token.js";
import type { Sampling } from "../api_types.js";
import { SessionElement } from "../view.js";

const SLIDERS = [
  { name: "temperature", from: 0, to: 2, step: 0.05, off: 1 },
  { name: "top_k", from: 0, to: 40, step: 1, off: 0 },
  { name: "top_p", from: 0.05, to: 1, step: 0.05, off: 1 },
  { name: "min_p", from: 0, to: 0.5, step: 0.01, off: 0 },
] as const;

@customElement("gf-lens-sampling")
export class LensSampling extends SessionElement {
  #choice = new Resource<Sampling>(this, () => {
    const { address, cursor } = this.session,
      parameters: Record<string, number> = {};
    for (const { name, off } of SLIDERS) if (this.#set(name) !== off) parameters[name] = this.#set(name);
    const draws = Number(address.options["samples"] ?? 0) || 0;
    return this.session.traceViewPath("sampling", {
      position: cursor.query,
      top: 12,
      ...parameters,
      ...(draws ? { draws, seed: address.seed + Number(address.options["sample_seed"] ?? 0) } : {}),
    });
  });

  static override styles = [
    SessionElement.styles,
    css`
      .sliders {
        display: grid;
        grid-template-columns: repeat(4, minmax(0, 1fr));
        gap: 0.8rem 1.4rem;
      }
      label {
        display: grid;
        font-size: 0.8rem;
        color: var(--soft);
      }
      label .num {
        color: var(--ink);
      }
      input[type="range"] {
        padding: 0;
        accent-color: var(--ink);
        width: 100%;
      }
      .stages {
        display: grid;
        grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr));
        gap: 1.1rem 1.75rem;
      }
      .stage h3 {
        display: flex;
        justify-content: space-between;
        gap: 0.5rem;
        border-bottom: 1px solid var(--line);
        padding-bottom: 0.25rem;
        margin-bottom: 0.35rem;
      }
      @media (max-width: 720px) {
        .sliders {
          grid-template-columns: 1fr 1fr;
        }
      }
    `,
  ];

  #set(name: string): number {
    const slider = SLIDERS.find((one) => one.name === name),
      parameters = Number(this.session.address.options[name] ?? NaN);
    return Number.isFinite(parameters) ? parameters : (slider?.off ?? 0);
  }

  override render() {
    const choice = this.#choice.value,
      error = this.#choice.error,
      { session } = this;
    return html`<div class="stack">
      <div class="stack close">
        <h3>Sampling</h3>
        <p class="small soft">
          The next-token distribution of the model, and the distribution after each sampling stage.
        </p>
      </div>
      ${
        session.live
          ? html`<div class="sliders">
              ${SLIDERS.map(
                ({ name, from, to, step, off }) =>
                  html`<label
                    ><span
                      >${name.replace("_", "-")}
                      <span class="num"
                        >${this.#set(name) === off && name !== "temperature" ? "off" : this.#set(name)}</span
                      ></span
                    >
                    <input
                      type="range"
                      aria-label=${name}
                      min=${from}
                      max=${to}
                      step=${step}
                      .value=${String(this.#set(name))}
                      @input=${(event: Event) =>
                        session.setOptions({
                          [name]:
                            Number((event.target as HTMLInputElement).value) === off
                              ? null
                              : (event.target as HTMLInputElement).value,
                        })}
                  /></label>`,
              )}
            </div>`
          : nothing
      }
      ${error ? html`<gf-notice reason=${error.message}></gf-notice>` : nothing}
      ${
        choice && !error
          ? html`<div class="stages">
                ${choice.stages.map(
                  (stage) =>
                    html`<div class="stage">
                      <h3>
                        <span>${stage.name.replace("_", "-")}</span
                        ><span class="soft num">${count(stage.remaining)} tokens</span>
                      </h3>
                      <gf-bars
                        tokens
                        top="1"
                        label="After ${stage.name}"
                        .bars=${choice.tokens.map((token, i) => ({
                          label: token.text,
                          value: stage.probs[i] as Num,
                          chosen: token.id === session.tokens[choice.position + 1]?.id,
                        }))}
                      ></gf-bars>
                    </div>`,
                )}${choice.n_draws > 1 ? this.#drawn(choice) : nothing}
              </div>
              <div class="row">
                <button ?hidden=${!session.live} @click=${() => this.#draw(1)}>Sample once</button
                ><button ?hidden=${!session.live} @click=${() => this.#draw(1000)}>Sample 1,000 times</button>
                ${
                  choice.n_draws === 1
                    ? html`<span class="small" role="status"
                        >sampled:
                        ${inlineToken(choice.tokens.find((_, i) => choice.draws[i])?.text ?? "another token")}</span
                      >`
                    : nothing
                }
              </div>
              <gf-receipt .of=${choice.receipt}></gf-receipt>`
          : nothing
      }
    </div>`;
  }

  #drawn(choice: Sampling) {
    return html`<div class="stage">
      <h3><span>sampled</span><span class="soft num">${count(choice.n_draws)} times</span></h3>
      <gf-bars
        tokens
        top="1"
        label="Frequencies of the samples"
        .bars=${choice.tokens.map((token, i) => ({
          label: token.text,
          value: (choice.draws[i] ?? 0) / choice.n_draws,
        }))}
      ></gf-bars>
      ${
        choice.other_draws
          ? html`<p class="small soft">other tokens ${percent(num(choice.other_draws) / choice.n_draws)}</p>`
          : nothing
      }
    </div>`;
  }

  /** Draw `n` samples. Repeating the request increments the seed. */
  #draw(n: number): void {
    const { address } = this.session,
      repeated = Number(address.options["samples"]) === n;
    this.session.setOptions({
      samples: String(n),
      sample_seed: repeated
        ? String(Number(address.options["sample_seed"] ?? 0) + 1)
        : (address.options["sample_seed"] ?? null),
    });
  }
}
