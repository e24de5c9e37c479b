/** Base class of elements, and the registry of views. */
import { LitElement, type CSSResultGroup } from "lit";
import { property } from "lit/decorators.js";
import { base } from "./style.js";
import type { Session } from "./session.js";

export interface ViewEntry {
  id: string; // used in the address
  title: string;
  element: string; // tag name
  part: "text" | "embed" | "block" | "attention" | "forward" | "head" | "source" | "model"; // on the model map
  arrows?: ("layer" | "head" | "query" | "key")[]; // values that the arrow keys change
  steps?: string; // description of what `,` and `.` step through
}

const entries: ViewEntry[] = [];

/** Register a view; views are shown in order of registration. */
export function register(entry: ViewEntry): void {
  entries.push(entry);
}

export const views = (): readonly ViewEntry[] => entries;

/** An element that updates when the session changes. */
export abstract class SessionElement extends LitElement {
  static override styles: CSSResultGroup = base;
  @property({ attribute: false }) session!: Session;
  #onChange = () => this.requestUpdate();

  override connectedCallback(): void {
    super.connectedCallback();
    this.session.addEventListener("change", this.#onChange);
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this.session.removeEventListener("change", this.#onChange);
  }
}
