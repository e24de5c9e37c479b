/** How a token's text is shown. */
import { html, type TemplateResult } from "lit";
import { visible } from "../lib/visible.js";

export { visible };

/** In a sentence: “·cat”. */
export const quoted = (text: string | undefined): TemplateResult =>
  html`<span class="num tok">${visible(text ?? "")}</span>`;
