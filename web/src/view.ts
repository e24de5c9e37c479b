/** What all views share, and the list of them: a view is one custom element, registered as data. */
import { LitElement, type CSSResultGroup } from "lit";
import { property } from "lit/decorators.js";
import { base } from "./style.js";
import type { Session } from "./session.js";

export interface ViewEntry {
  id: string; // in the address
  title: string;
  element: string; // its tag
  place: "text" | "embed" | "block" | "attention" | "forward" | "head" | "source" | "model"; // where on the map it is
  arrows?: ("layer" | "head" | "query" | "key")[]; // what the arrow keys move
  steps?: string; // what `,` and `.` go through
}

const entries: ViewEntry[] = [];

/** Add a view; `order` is that of the calls. */
export function register(entry: ViewEntry): void {
  entries.push(entry);
}

export const views = (): readonly ViewEntry[] => entries;

/** An element that follows the session. */
export abstract class Follower extends LitElement {
  static override styles: CSSResultGroup = base;
  @property({ attribute: false }) session!: Session;
  #follow = () => this.requestUpdate();

  override connectedCallback(): void {
    super.connectedCallback();
    this.session.addEventListener("change", this.#follow);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.session.removeEventListener("change", this.#follow);
  }
}
