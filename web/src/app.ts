/** The page: text above, the map of the model at the side, the opened room, and the guided walk beside it. */
import { css, html, nothing } from "lit";
import { customElement, property } from "lit/decorators.js";
import { unsafeStatic, html as staticHtml } from "lit/static-html.js";
import "./shell/header.js";
import "./shell/key.js";
import "./shell/map.js";
import "./shell/side.js";
import "./shell/tokens.js";
import "./parts/refused.js";
import { bakedIn } from "./baked.js";
import { beginningAt, noBar, windowBar } from "./bar.js";
import { Channel, type Port } from "./channel.js";
import type { Place } from "./lib/address.js";
import { Http } from "./transport.js";
import { Session } from "./session.js";
import { Follower, views, type ViewEntry } from "./view.js";

const KEY = "glassformer-key"; // in this tab's storage alone

/** What stands behind the page: the answers in its own file, or the server that sent it. */
function behind(): Session {
  const baked = bakedIn(document);
  return baked
    ? new Session(baked, beginningAt(windowBar, baked.report.place))
    : new Session(new Http("", sessionStorage.getItem(KEY) ?? ""), windowBar);
}

@customElement("gf-app")
export class App extends Follower {
  @property({ attribute: false }) override session!: Session;
  @property({ type: Boolean, reflect: true }) guest = false; // one picture on somebody else's page

  /** The page as a guest: text and picture alone, its numbers through a notebook's channel. */
  static guest(port: Port, place: Partial<Place>): App {
    const app = document.createElement("gf-app") as App;
    app.guest = true;
    app.session = new Session(new Channel(port), noBar(place));
    return app;
  }

  static override styles = [
    Follower.styles,
    css`
      :host {
        display: grid;
        min-height: 100vh;
        grid-template: auto auto 1fr / 11.5rem minmax(0, 1fr) 17.5rem;
        grid-template-areas: "top top top" "map text side" "map room side";
        column-gap: 2rem;
        padding: 0 1.75rem 3rem;
        max-width: 96rem;
        margin: 0 auto;
      }
      gf-header {
        grid-area: top;
      }
      .text {
        grid-area: text;
        padding-bottom: 1rem;
      }
      gf-map {
        grid-area: map;
        position: sticky;
        top: 0.5rem;
        align-self: start;
        max-height: calc(100vh - 1rem);
        overflow: auto;
      }
      main {
        grid-area: room;
        min-width: 0;
        scroll-margin-top: 1rem;
      }
      gf-side {
        grid-area: side;
        position: sticky;
        top: 0.5rem;
        align-self: start;
        max-height: calc(100vh - 1rem);
        overflow: auto;
      }
      nav {
        border-bottom: 1px solid var(--line);
        margin-bottom: 1.4rem;
      }
      nav ul {
        text-wrap: balance;
      }
      nav li {
        display: inline-block;
        margin-right: 1rem;
      }
      nav label {
        display: none;
        gap: 0.6rem;
        align-items: center;
        font-size: 0.82rem;
        color: var(--soft);
        padding-bottom: 0.7rem;
      }
      nav select {
        flex: 1;
        color: var(--ink);
        font-size: 0.95rem;
        padding: 0.4rem 0.6rem;
      }
      nav a {
        display: block;
        padding: 0.42rem 0;
        white-space: nowrap;
        text-decoration: none;
        color: var(--soft);
        font-size: 0.82rem;
        border-bottom: 2px solid transparent;
        margin-bottom: -1px;
      }
      nav a:hover {
        color: var(--ink);
      }
      nav a[aria-current] {
        color: var(--ink);
        border-color: var(--ink);
      }
      :host([guest]) {
        display: block;
        min-height: 0;
        padding: 0.25rem;
        max-width: none;
      }
      .skip:not(:focus) {
        position: absolute;
        width: 1px;
        height: 1px;
        overflow: hidden;
        clip-path: inset(50%);
      }
      @media (max-width: 1100px) {
        :host {
          grid-template: auto auto auto 1fr auto / 9rem minmax(0, 1fr);
          grid-template-areas: "top top" "map text" "map room" "map side";
          column-gap: 1.5rem;
        }
        gf-side {
          position: static;
          max-height: none;
          margin-top: 2rem;
        }
      }
      @media (max-width: 720px) {
        :host {
          display: block;
          padding: 0 1rem 3rem;
        }
        gf-map {
          position: sticky;
          top: 0;
          z-index: 3;
          max-height: none;
          margin: 0 -1rem;
        }
        nav ul {
          display: none;
        }
        nav label {
          display: flex;
        }
        gf-side {
          margin-top: 2rem;
        }
      }
    `,
  ];

  override connectedCallback(): void {
    this.session ??= behind();
    super.connectedCallback();
    this.#keys.addEventListener("keydown", this.#key as EventListener);
    void this.session.start();
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#keys.removeEventListener("keydown", this.#key as EventListener);
  }

  /** Whose keys are the page's: all, or those pressed within it. */
  get #keys(): EventTarget {
    return this.guest ? this : window;
  }

  get #view(): ViewEntry | undefined {
    return views().find((view) => view.id === this.session.place.view);
  }

  override render() {
    const { session } = this,
      view = this.#view;
    if (this.guest) return html`<gf-tokens class="text" .session=${session}></gf-tokens>${this.#main(view)}`;
    return html` <a
        class="skip"
        href="#room"
        @click=${(event: Event) => {
          event.preventDefault();
          this.renderRoot.querySelector("main")?.focus();
        }}
        >Skip to the picture</a
      >
      <gf-header .session=${session}></gf-header>
      <gf-map .session=${session}></gf-map>
      <gf-tokens class="text" .session=${session}></gf-tokens>
      ${this.#main(view)}
      <gf-side .session=${session}></gf-side>`;
  }

  #main(view: ViewEntry | undefined) {
    return html`<main tabindex="-1" id="room">
      <nav aria-label="Pictures">
        <label
          >picture
          <select
            aria-label="Picture"
            @change=${(event: Event) => this.session.visit((event.target as HTMLSelectElement).value)}
          >
            ${views().map((one) => html`<option value=${one.id} .selected=${one === view}>${one.title}</option>`)}
          </select></label
        >
        <ul>
          ${views().map(
            (one) =>
              html`<li>
                <a
                  href="#/${one.id}"
                  aria-current=${one === view ? "page" : nothing}
                  @click=${(event: MouseEvent) => this.#open(event, one)}
                  >${one.title}</a
                >
              </li>`,
          )}
        </ul>
      </nav>
      ${this.#room(view)}
    </main>`;
  }

  #room(view: ViewEntry | undefined) {
    const { session } = this;
    if (session.keyWanted)
      return html`<gf-key
        .session=${session}
        @key=${(event: CustomEvent<string>) => this.#unlock(event.detail)}
      ></gf-key>`;
    if (!view)
      return html`<gf-refused
        heading="There is no such picture"
        reason="“${session.place.view}” is none of those above."
      ></gf-refused>`;
    if (session.problem)
      return html`<gf-refused heading="The model did not read this text" reason=${session.problem.message}>
        <p><button @click=${() => void session.retry()}>Try again</button></p></gf-refused
      >`;
    if (!session.anatomy || (!session.trace && view.place !== "model"))
      return html`<p class="soft" role="status">${session.writing ? "The model reads the text …" : ""}</p>`;
    const refused = session.anatomy.refused[view.id];
    if (refused)
      return html`<h2>${view.title}</h2>
        <gf-refused reason=${refused}></gf-refused>`;
    const tag = unsafeStatic(view.element);
    return staticHtml`<${tag} .session=${session}></${tag}>`;
  }

  override updated(): void {
    if (this.guest) return;
    const title = this.#view?.title;
    document.title = title ? `${title} · Glassformer` : "Glassformer";
  }

  #open(event: MouseEvent, view: ViewEntry): void {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a tab of its own
    event.preventDefault();
    this.session.visit(view.id);
  }

  #unlock(key: string): void {
    sessionStorage.setItem(KEY, key);
    (this.session.transport as Http).key = key;
    void this.session.retry();
  }

  /** Arrows move query and key; with shift, layer and head. `,` and `.` step back and on. */
  #key = (event: KeyboardEvent): void => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event
      .composedPath()
      .some((node) => node instanceof HTMLElement && /^(INPUT|TEXTAREA|SELECT)$/.test(node.tagName));
    const moves = this.#view?.arrows ?? [];
    if (typing || !this.session.trace) return;
    const step = { ",": -1, ".": 1 }[event.key];
    if (step && this.#view?.steps) this.session.dispatchEvent(new CustomEvent("step", { detail: step }));
    const side = moves.includes("key") ? "key" : "query"; // tokens lie side by side
    const plain = {
      ArrowUp: ["query", -1],
      ArrowDown: ["query", 1],
      ArrowLeft: [side, -1],
      ArrowRight: [side, 1],
    } as const;
    const shifted = {
      ArrowUp: ["layer", -1],
      ArrowDown: ["layer", 1],
      ArrowLeft: ["head", -1],
      ArrowRight: ["head", 1],
    } as const;
    const [what, by] = (event.shiftKey ? shifted : plain)[event.key as keyof typeof plain] ?? [null, 0];
    if (what === null || !moves.includes(what)) return;
    event.preventDefault();
    const { here } = this.session;
    const { anatomy, tokens } = this.session,
      last = tokens.length - 1;
    const top = {
      layer: (anatomy?.layers.length ?? 1) - 1,
      head: (anatomy?.layers[here.layer]?.n_heads ?? 1) - 1,
      query: last,
      key: this.session.keys.length - 1,
    }[what];
    this.session.go({ [what]: Math.min(top, Math.max(0, here[what] + by)) });
  };
}
