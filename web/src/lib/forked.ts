/** What a fork says, in one number. */
import type { Fork, ForkStep } from "../shapes.js";
import { num } from "./number.js";

/** Where what comes next is furthest apart; null where there is no such number. */
export function furthest(fork: Fork | null): ForkStep | null {
  const some = (fork?.steps ?? []).filter((one) => one.kl !== null && Number.isFinite(num(one.kl)));
  return some.reduce<ForkStep | null>(
    (best, one) => (best && num(best.kl ?? 0) >= num(one.kl ?? 0) ? best : one),
    null,
  );
}
