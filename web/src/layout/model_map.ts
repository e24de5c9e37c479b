/** Map of the model: its parts in the order of a forward pass, with the current one marked. */
import { css, html, nothing } from "lit";
import { customElement } from "lit/decorators.js";
import { setStyle } from "../lib/set_style.js";
import { compact } from "../lib/number.js";
import type { Anatomy } from "../api_types.js";
import { views, SessionElement, type ViewEntry } from "../view.js";

@customElement("gf-model-map")
export class ModelMap extends SessionElement {
  static override styles = [
    SessionElement.styles,
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
      .cache {
        grid-column: 2 / -1;
        grid-row: 2;
        height: 3px;
        border-radius: 2px;
        background: var(--wash);
        overflow: hidden;
      }
      .cache b {
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
        .cache {
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
    const { anatomy, address, cursor, processed } = this.session;
    if (!anatomy) return nothing;
    const view = views().find((one) => one.id === address.view),
      n = anatomy.layers.length,
      context = anatomy.context ?? processed;
    const at = view?.part,
      inside = at === "attention" || at === "forward" || at === "block";
    const stop = (where: ViewEntry["part"], name: string, note: string) =>
      html`<li>
        <button aria-current=${at === where ? "location" : nothing} @click=${() => this.#openPart(where)}>
          ${name}<small>${note}</small>
        </button>
      </li>`;
    return html`<nav aria-label="Map of the model">
      <ol class=${n > 8 ? "tight" : ""}>
        ${
          anatomy.kind === "encoder-decoder" || anatomy.kind === "recurrent"
            ? stop("source", "Encoder", anatomy.encoder.length ? `${anatomy.encoder.length} blocks` : "states")
            : nothing
        }
        ${stop("text", "Tokenizer", `${anatomy.vocab_size.toLocaleString("en-US")} tokens`)}
        ${stop("embed", "Embedding", `${anatomy.vocab_size} × ${anatomy.d_model}`)}
        ${anatomy.layers.map(
          (one, i) =>
            html`<li class="block ${inside && cursor.layer === i ? "here" : ""}">
              <span>${i}</span>
              <button
                class="a"
                aria-label="attn, attention of block ${i}"
                aria-current=${at === "attention" && cursor.layer === i ? "location" : nothing}
                @click=${() => this.#openPart("attention", i)}
              >
                attn
              </button>
              <i
                class="cache"
                title="cache: ${Math.min(processed, one.window ?? processed)} of ${Math.min(
                  context,
                  one.window ?? context,
                )} tokens"
                ><b
                  ${setStyle({
                    width: `${Math.min(100, (100 * processed) / Math.min(context, one.window ?? context))}%`,
                  })}
                ></b
              ></i>
              <button
                class="m"
                aria-label="ffn, feed-forward layer of block ${i}"
                aria-current=${(at === "forward" || at === "block") && cursor.layer === i ? "location" : nothing}
                @click=${() => this.#openPart("block", i)}
              >
                ffn
              </button>
            </li>`,
        )}
        ${stop("head", "LM head", anatomy.tied ? "tied to embedding" : headShape(anatomy))}
        ${stop("model", "Overview", `${compact(anatomy.parameters)} parameters`)}
      </ol>
    </nav>`;
  }

  /** Scroll the current part into view where the map is a horizontal strip. */
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

  #openPart(place: ViewEntry["part"], layer?: number): void {
    const { session } = this,
      now = views().find((one) => one.id === session.address.view);
    const view = now?.part === place ? now : views().find((one) => one.part === place);
    if (view) session.openView(view.id, layer === undefined ? {} : { layer });
  }
}

/** Return the shape of the LM head as text: d_model × vocab_size. */

function headShape(anatomy: Anatomy): string {
  const table = anatomy.parts.find((part) => part.kind === "head")?.matrices.find((one) => one.shape.length === 2);
  return table
    ? [...table.shape]
        .reverse()
        .map((n) => n.toLocaleString("en-US"))
        .join(" × ")
    : "";
}
