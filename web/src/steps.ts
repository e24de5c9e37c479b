/** Which picture each step of the guided walk stands beside. */
export const STEPS = [
  "cell",
  "qkv",
  "cell",
  "grid",
  "heads",
  "tokenizer",
  "embedding",
  "block",
  "map",
  "lens",
  "tracks",
  "cache",
  "fork",
] as const;

/** The walk's step for a view: this one if it is the view's, else its first, else none changes. */
export function stepOf(view: string, now: number): number {
  if (STEPS[now] === view) return now;
  const found = STEPS.findIndex((one) => one === view);
  return found < 0 ? now : found;
}
