/** Edits as a server takes them: a text to patch from becomes its trace, and a difference of two texts or tokens a vector. */
import type { Edit } from "./lib/address.js";
import { num } from "./lib/number.js";
import type { Tensor } from "./lib/tensor.js";
import type { Session } from "./session.js";
import type { Embedding, Tokens } from "./shapes.js";
import { Refused } from "./transport.js";

const OURS = new Set(["off", "from_text", "of", "plus", "minus"]); // what a link holds and a server does not know

export const asServed = (session: Session, edits: Edit[], signal?: AbortSignal): Promise<Edit[]> =>
  Promise.all(edits.map((edit) => served(session, edit, signal)));

async function served(session: Session, edit: Edit, signal?: AbortSignal): Promise<Edit> {
  const plain = Object.fromEntries(Object.entries(edit).filter(([name]) => !OURS.has(name)));
  const { from_text, of } = edit;
  if (typeof from_text === "string") return { ...plain, from_trace: (await session.readText(from_text)).id };
  if (of === undefined) return plain;
  const values = await difference(session, edit);
  const named = await session.transport.post<{ vector: string }>("/v1/vectors", { values }, signal);
  return { ...plain, vector: named.vector };
}

/** The exact float32 numbers of what an edit adds. */
async function difference(session: Session, edit: Edit): Promise<number[]> {
  const of = edit["of"] === "tokens" ? rowOf : lastOf;
  const [plus, minus] = await Promise.all([
    of(session, edit, String(edit["plus"] ?? "")),
    of(session, edit, String(edit["minus"] ?? "")),
  ]);
  return plus.map((x, i) => Math.fround(x - (minus[i] as number)));
}

/** A token's row of the embedding table. */
async function rowOf(session: Session, _: Edit, text: string): Promise<number[]> {
  const { tokens } = await session.ask<Tokens>(session.ofModel("tokens", { text }));
  const own = tokens.filter((token) => !token.special),
    [one] = own;
  if (!one || own.length > 1)
    throw new Refused(
      `“${text}” is ${own.length} tokens, and one is wanted: a blank before a word may make it one`,
      400,
    );
  return (await session.ask<Embedding>(session.ofModel("embedding", { token: one.id, n: 1 }))).row.map((x) =>
    Math.fround(num(x)),
  ); // nine digits, which name one float32
}

/** What stands at an edit's point after the last token of a text. */
async function lastOf(session: Session, edit: Edit, text: string): Promise<number[]> {
  const { id } = await session.readText(text);
  return [
    ...(await session.ask<Tensor>(`/v1/traces/${id}/tensors/${String(edit["point"])}?slice=-1&dtype=f32`, "tensor"))
      .data,
  ];
}
