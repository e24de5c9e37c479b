/** How a token's text is shown: blanks, line ends and bytes that are no whole character can be seen. */
import { html, type TemplateResult } from "lit";

export function visible(text: string): string {
  return text.replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍") || "∅";
}

/** In a sentence: “·cat”. */
export const quoted = (text: string | undefined): TemplateResult => html`<span class="num tok">${visible(text ?? "")}</span>`;
