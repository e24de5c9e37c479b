/** What is worth seeing first: a head that does something on this text, by its measured part in it, and where it looks. */
import type { Tensor } from "./lib/tensor.js";
import { num, type Num } from "./lib/number.js";
import type { Attribution, Roles, TraceInfo } from "./shapes.js";
import type { Here, Session } from "./session.js";

const ROLES = ["induction", "duplicate", "previous_token"]; // the first that some head plays well enough
const ENOUGH = 0.25,
  NEARLY = 0.7;

export interface Head {
  layer: number;
  head: number;
  score: number;
}

/** The heads that play a role nearly as well as the best, best first; those of the first role that is played at all. */
export function players(scores: Record<string, Num[][]>): Head[] {
  for (const role of ROLES) {
    const all = (scores[role] ?? []).flatMap((row, layer) =>
      row.map((score, head) => ({ layer, head, score: num(score) })),
    );
    const good = all.filter((one) => one.score >= ENOUGH).sort((a, b) => b.score - a.score);
    if (good[0]) return good.filter((one) => one.score >= NEARLY * (good[0] as Head).score).slice(0, 6);
  }
  return [];
}

/** Where a query's row is loudest, itself and the first token apart: there heads rest. */
export function loudest(row: ArrayLike<number>, query: number): { key: number; share: number } {
  let key = 0,
    share = -1;
  for (let i = 1; i < query; i++) if ((row[i] as number) > share) [key, share] = [i, row[i] as number];
  return share < 0 ? { key: 0, share: row[0] ?? 0 } : { key, share };
}

/** The head that speaks loudest for what the model says next; by roles where no head has a share of its own. */
async function candidates(session: Session, base: string, query: number): Promise<Head[]> {
  try {
    const { heads } = await session.ask<Attribution>(`${base}/views/attribution?position=${query}`);
    const all = heads.flatMap((row, layer) => row.map((score, head) => ({ layer, head, score: num(score) })));
    return all.sort((a, b) => b.score - a.score).slice(0, 1);
  } catch {
    return players((await session.ask<Roles>(`${base}/views/roles`)).scores);
  }
}

/** Of the heads that do most, the one whose row for this query is sharpest, and the key that it looks at. */
export async function worthSeeing(session: Session, trace: TraceInfo): Promise<Partial<Here>> {
  const { place } = session,
    query = place.query >= 0 ? Math.min(place.query, trace.tokens.length - 1) : trace.n_prompt - 1;
  const base = `/v1/traces/${trace.id}`;
  const row = ({ layer, head }: { layer: number; head: number }) =>
    session.ask<Tensor>(
      `${base}/tensors/blocks.${layer}.attn.probs?slice=${encodeURIComponent(`${head},${query},:`)}&dtype=f32`,
      "tensor",
    );
  const named = place.layer >= 0 && place.head >= 0;
  const heads = named ? [{ layer: place.layer, head: place.head, score: 1 }] : await candidates(session, base, query);
  const seen = await Promise.all(heads.map(async (one) => ({ ...one, ...loudest((await row(one)).data, query) })));
  const best = seen.sort((a, b) => b.share - a.share)[0];
  return best ? { layer: best.layer, head: best.head, query, key: best.key } : {};
}
