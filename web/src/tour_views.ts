/** The view of each step of the guided tour. */
export const TOUR_VIEWS = [
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

/** Return the tour step for a view: the current step if it matches, else the first match, else the current step. */
export function tourStepFor(view: string, now: number): number {
  if (TOUR_VIEWS[now] === view) return now;
  const found = TOUR_VIEWS.findIndex((one) => one === view);
  return found < 0 ? now : found;
}
