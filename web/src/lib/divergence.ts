/** Summary of the comparison of two traces. */
import type { Fork, ForkStep } from "../api_types.js";
import { num } from "./number.js";

/** Return the step with the largest KL divergence, or null if no KL divergence is finite. */
export function largestDivergence(fork: Fork | null): ForkStep | null {
  const some = (fork?.steps ?? []).filter((one) => one.kl !== null && Number.isFinite(num(one.kl)));
  return some.reduce<ForkStep | null>(
    (best, one) => (best && num(best.kl ?? 0) >= num(one.kl ?? 0) ? best : one),
    null,
  );
}
