const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

/**
 * Return a text with visible whitespace; the empty text becomes ∅. Right-to-left text is isolated (Unicode UAX #9), so
 * that it does not reorder the numbers beside it.
 */
export function visibleText(text: string): string {
  const visible = text.replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍") || "∅";
  return RIGHT_TO_LEFT.test(visible) ? `\u2068${visible}\u2069` : visible;
}
