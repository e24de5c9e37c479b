/** Return a text with visible whitespace; the empty text becomes ∅. */
export function visibleText(text: string): string {
  return text.replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍") || "∅";
}
