/** The model at a glance, always in sight: its parts in the order of a pass, and where one is. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import { look } from "../lib/look.js";
import { headShape } from "../lib/head.js";
import { big } from "../lib/number.js";
import { views, Follower, type ViewEntry } from "../view.js";

@customElement("gf-map")
export class ModelMap extends Follower {
  static override styles = [
    Follower.styles,
    css`
      nav {
        padding: 0.4rem 0.4rem 0.8rem;
      }
      ol {
        position: relative;
        display: grid;
        gap: 3px;
      }
      ol::before {
        content: "";
        position: absolute;
        left: 50%;
        top: 0.8rem;
        bottom: 0.8rem;
        border-left: 3px solid var(--residual);
        transform: translateX(-50%);
        opacity: 0.55;
      }
      li {
        position: relative;
      }
      button {
        width: 100%;
        font-size: 0.78rem;
        padding: 0.3rem 0.4rem;
        line-height: 1.25;
        display: block;
        text-align: center;
        border-radius: 8px;
        background: var(--card);
      }
      button small {
        display: block;
        color: var(--soft);
        font-size: 0.7rem;
      }
      .block {
        display: grid;
        grid-template-columns: 1.35rem 1fr 1fr;
        gap: 3px;
        align-items: center;
        border-radius: 8px;
        padding: 2px;
        background: color-mix(in srgb, var(--paper) 70%, transparent);
      }
      .block > span {
        font-size: 0.7rem;
        color: var(--soft);
        text-align: center;
      }
      .block button {
        font-size: 0.7rem;
        padding: 0.24rem 0.1rem;
        border-radius: 6px;
      }
      .tight .block button {
        padding: 0.03rem;
        font-size: 0.64rem;
      }
      .kept {
        grid-column: 2 / -1;
        grid-row: 2;
        height: 3px;
        border-radius: 2px;
        background: var(--wash);
        overflow: hidden;
      }
      .kept b {
        display: block;
        height: 100%;
        background: linear-gradient(var(--key) 50%, var(--value) 50%);
      }
      .a {
        border-left: 3px solid var(--query);
      }
      .m {
        border-left: 3px solid var(--forward);
      }
      button[aria-current] {
        background: var(--ink);
        color: var(--paper);
        border-color: var(--ink);
      }
      button[aria-current] small {
        color: inherit;
      }
      .block.here > span {
        color: var(--ink);
        font-weight: 700;
      }
      p {
        font-size: 0.72rem;
        color: var(--soft);
        margin-top: 0.6rem;
        text-align: center;
      }
      @media (max-width: 720px) {
        :host {
          background: var(--paper);
          border-bottom: 1px solid var(--line);
        }
        nav {
          padding: 0.4rem 1rem;
          overflow-x: auto;
        }
        ol,
        .tight {
          display: flex;
          align-items: stretch;
          gap: 4px;
          min-width: max-content;
        }
        ol::before {
          left: 0.5rem;
          right: 0.5rem;
          top: 50%;
          bottom: auto;
          border: 0;
          border-top: 3px solid var(--residual);
          transform: none;
        }
        button {
          padding: 0.2rem 0.5rem;
        }
        button small,
        p {
          display: none;
        }
        .block {
          grid-template-columns: auto auto auto;
          background: var(--paper);
        }
        .kept {
          display: none;
        }
        .block > span {
          padding: 0 0.1rem 0 0.25rem;
        }
        .block button,
        .tight .block button {
          padding: 0.2rem 0.32rem;
          font-size: 0.7rem;
        }
      }
    `,
  ];

  override render() {
    const { anatomy, place, here, passed } = this.session;
    if (!anatomy) return nothing;
    const view = views().find((one) => one.id === place.view),
      n = anatomy.layers.length,
      context = anatomy.context ?? passed;
    const at = view?.place,
      inside = at === "attention" || at === "forward" || at === "block";
    const stop = (where: ViewEntry["place"], name: string, note: string) =>
      html`<li>
        <button aria-current=${at === where ? "location" : nothing} @click=${() => this.#open(where)}>
          ${name}<small>${note}</small>
        </button>
      </li>`;
    return html`<nav aria-label="Map of the model">
      <ol class=${n > 8 ? "tight" : ""}>
        ${
          anatomy.kind === "encoder-decoder" || anatomy.kind === "recurrent"
            ? stop(
                "source",
                "Encoder",
                anatomy.encoder.length ? `${anatomy.encoder.length} blocks read the source` : "its states",
              )
            : nothing
        }
        ${stop("text", "Tokenizer", `${anatomy.vocab_size.toLocaleString("en-US")} tokens`)}
        ${stop("embed", "Embedding", `${anatomy.vocab_size} × ${anatomy.d_model}`)}
        ${anatomy.layers.map(
          (one, i) =>
            html`<li class="block ${inside && here.layer === i ? "here" : ""}">
              <span>${i}</span>
              <button
                class="a"
                aria-label="attn, attention of block ${i}"
                aria-current=${at === "attention" && here.layer === i ? "location" : nothing}
                @click=${() => this.#open("attention", i)}
              >
                attn
              </button>
              <i
                class="kept"
                title="its cache: ${Math.min(passed, one.window ?? passed)} of ${Math.min(
                  context,
                  one.window ?? context,
                )} tokens"
                ><b
                  ${look({ width: `${Math.min(100, (100 * passed) / Math.min(context, one.window ?? context))}%` })}
                ></b
              ></i>
              <button
                class="m"
                aria-label="ffn, feed-forward layer of block ${i}"
                aria-current=${(at === "forward" || at === "block") && here.layer === i ? "location" : nothing}
                @click=${() => this.#open("block", i)}
              >
                ffn
              </button>
            </li>`,
        )}
        ${stop("head", "LM head", anatomy.tied ? "tied to the embedding" : headShape(anatomy))}
        ${stop("model", "Whole model", `${big(anatomy.parameters)} parameters`)}
      </ol>
    </nav>`;
  }

  /** On a narrow screen the map is a strip: where one is stays in sight. */
  override updated(): void {
    const strip = this.renderRoot.querySelector<HTMLElement>("nav"),
      one = strip?.querySelector<HTMLElement>("[aria-current]");
    if (strip && one && strip.scrollWidth > strip.clientWidth)
      strip.scrollLeft =
        one.getBoundingClientRect().left -
        strip.getBoundingClientRect().left +
        strip.scrollLeft -
        strip.clientWidth / 2;
  }

  #open(place: ViewEntry["place"], layer?: number): void {
    const { session } = this,
      now = views().find((one) => one.id === session.place.view);
    const view = now?.place === place ? now : views().find((one) => one.place === place);
    if (view) session.visit(view.id, layer === undefined ? {} : { layer });
  }
}
