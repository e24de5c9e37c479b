/** Root element of the page: header, model map, tokens, the open view, and the sidebar with the guided tour. */
import { css, html, nothing } from "lit";
import { customElement, property } from "lit/decorators.js";
import { unsafeStatic, html as staticHtml } from "lit/static-html.js";
import "./layout/header.js";
import "./layout/key_prompt.js";
import "./layout/model_map.js";
import "./layout/sidebar.js";
import "./layout/tokens.js";
import "./components/notice.js";
import { reportIn } from "./report_transport.js";
import { withDefaults, memoryAddressBar, browserAddressBar } from "./address_bar.js";
import { NotebookTransport, type Port } from "./notebook_transport.js";
import type { Address } from "./lib/address.js";
import { HttpTransport } from "./transport.js";
import { Session } from "./session.js";
import { SessionElement, views, type ViewEntry } from "./view.js";

const KEY = "glassformer-key"; // in sessionStorage

/** Create the session: from the report data in this document if it has any, otherwise from the server. */
function createSession(): Session {
  const baked = reportIn(document);
  return baked
    ? new Session(baked, withDefaults(browserAddressBar, baked.report.address))
    : new Session(new HttpTransport("", sessionStorage.getItem(KEY) ?? ""), browserAddressBar);
}

@customElement("gf-app")
export class App extends SessionElement {
  @property({ attribute: false }) override session!: Session;
  @property({ type: Boolean, reflect: true }) embedded = false; // embedded in another page: shows one view only

  /** Create an embedded page that shows the tokens and one view, with data from a notebook. */
  static embed(port: Port, address: Partial<Address>): App {
    const app = document.createElement("gf-app") as App;
    app.embedded = true;
    app.session = new Session(new NotebookTransport(port), memoryAddressBar(address));
    return app;
  }

  static override styles = [
    SessionElement.styles,
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
      gf-model-map {
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
      gf-sidebar {
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
      :host([embedded]) {
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
        gf-sidebar {
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
        gf-model-map {
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
        gf-sidebar {
          margin-top: 2rem;
        }
      }
    `,
  ];

  override connectedCallback(): void {
    this.session ??= createSession();
    super.connectedCallback();
    this.#keyTarget.addEventListener("keydown", this.#onKey as EventListener);
    void this.session.start();
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.#keyTarget.removeEventListener("keydown", this.#onKey as EventListener);
  }

  /** The target of key events: the window, or this element if embedded. */
  get #keyTarget(): EventTarget {
    return this.embedded ? this : window;
  }

  get #view(): ViewEntry | undefined {
    return views().find((view) => view.id === this.session.address.view);
  }

  override render() {
    const { session } = this,
      view = this.#view;
    if (this.embedded) return html`<gf-tokens class="text" .session=${session}></gf-tokens>${this.#main(view)}`;
    return html` <a
        class="skip"
        href="#room"
        @click=${(event: Event) => {
          event.preventDefault();
          this.renderRoot.querySelector("main")?.focus();
        }}
        >Skip to the view</a
      >
      <gf-header .session=${session}></gf-header>
      <gf-model-map .session=${session}></gf-model-map>
      <gf-tokens class="text" .session=${session}></gf-tokens>
      ${this.#main(view)}
      <gf-sidebar .session=${session}></gf-sidebar>`;
  }

  #main(view: ViewEntry | undefined) {
    return html`<main tabindex="-1" id="room">
      <nav aria-label="Views">
        <label
          >view
          <select
            aria-label="View"
            @change=${(event: Event) => this.session.openView((event.target as HTMLSelectElement).value)}
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
      ${this.#openedView(view)}
    </main>`;
  }

  #openedView(view: ViewEntry | undefined) {
    const { session } = this;
    if (session.needsKey)
      return html`<gf-key-prompt
        .session=${session}
        @key=${(event: CustomEvent<string>) => this.#unlock(event.detail)}
      ></gf-key-prompt>`;
    if (!view)
      return html`<gf-notice
        heading="Unknown view"
        reason="The page has no view “${session.address.view}”. Select one from the list above."
      ></gf-notice>`;
    if (session.error)
      return html`<gf-notice heading="The model could not process this text" reason=${session.error.message}>
        <p><button @click=${() => void session.retry()}>Try again</button></p></gf-notice
      >`;
    if (!session.anatomy || (!session.trace && view.part !== "model"))
      return html`<p class="soft" role="status">${session.generated ? "Processing the text …" : ""}</p>`;
    const refused = session.anatomy.unavailable[view.id];
    if (refused)
      return html`<h2>${view.title}</h2>
        <gf-notice reason=${refused}></gf-notice>`;
    const tag = unsafeStatic(view.element);
    return staticHtml`<${tag} .session=${session}></${tag}>`;
  }

  override updated(): void {
    if (this.embedded) return;
    const title = this.#view?.title;
    document.title = title ? `${title} · Glassformer` : "Glassformer";
  }

  #open(event: MouseEvent, view: ViewEntry): void {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // the browser opens a new tab
    event.preventDefault();
    this.session.openView(view.id);
  }

  #unlock(key: string): void {
    sessionStorage.setItem(KEY, key);
    (this.session.transport as HttpTransport).key = key;
    void this.session.retry();
  }

  /** Arrow keys move query and key, with shift layer and head. `,` and `.` step backward and forward. */
  #onKey = (event: KeyboardEvent): void => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event
      .composedPath()
      .some((node) => node instanceof HTMLElement && /^(INPUT|TEXTAREA|SELECT)$/.test(node.tagName));
    const moves = this.#view?.arrows ?? [];
    if (typing || !this.session.trace) return;
    const step = { ",": -1, ".": 1 }[event.key];
    if (step && this.#view?.steps) this.session.dispatchEvent(new CustomEvent("step", { detail: step }));
    const side = moves.includes("key") ? "key" : "query"; // tokens are laid out horizontally
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
    const { cursor } = this.session;
    const { anatomy, tokens } = this.session,
      last = tokens.length - 1;
    const top = {
      layer: (anatomy?.layers.length ?? 1) - 1,
      head: (anatomy?.layers[cursor.layer]?.n_heads ?? 1) - 1,
      query: last,
      key: this.session.keyTokens.length - 1,
    }[what];
    this.session.navigate({ [what]: Math.min(top, Math.max(0, cursor[what] + by)) });
  };
}
