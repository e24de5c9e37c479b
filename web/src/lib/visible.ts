/** Blanks, line ends and bytes that are no whole character, so that they can be seen. */
export function visible(text: string): string {
  return text.replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍") || "∅";
}
