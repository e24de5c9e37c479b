/** Rendering of token text. */
import { html, type TemplateResult } from "lit";
import { visibleText } from "../lib/visible_text.js";

export { visibleText };

/** Render a token inside a sentence. */
export const inlineToken = (text: string | undefined): TemplateResult =>
  html`<span class="num tok">${visibleText(text ?? "")}</span>`;
