/** Edits in the form that the server accepts: texts become trace ids, differences become vectors. */
import type { Edit } from "./lib/address.js";
import { num } from "./lib/number.js";
import type { Tensor } from "./lib/tensor.js";
import type { Session } from "./session.js";
import type { Embedding, Tokens } from "./api_types.js";
import { ApiError } from "./transport.js";

const LINK_FIELDS = new Set(["off", "from_text", "of", "plus", "minus"]); // not accepted by the server

export const toServerEdits = (session: Session, edits: Edit[], signal?: AbortSignal): Promise<Edit[]> =>
  Promise.all(edits.map((edit) => toServerEdit(session, edit, signal)));

async function toServerEdit(session: Session, edit: Edit, signal?: AbortSignal): Promise<Edit> {
  const plain = Object.fromEntries(Object.entries(edit).filter(([name]) => !LINK_FIELDS.has(name)));
  const { from_text, of } = edit;
  if (typeof from_text === "string") return { ...plain, from_trace: (await session.traceText(from_text)).id };
  if (of === undefined) return plain;
  const values = await difference(session, edit);
  const named = await session.transport.post<{ vector: string }>("/v1/vectors", { values }, signal);
  return { ...plain, vector: named.vector };
}

/** Return the float32 values of the vector that an edit adds. */
async function difference(session: Session, edit: Edit): Promise<number[]> {
  const of = edit["of"] === "tokens" ? embeddingOf : lastActivation;
  const [plus, minus] = await Promise.all([
    of(session, edit, String(edit["plus"] ?? "")),
    of(session, edit, String(edit["minus"] ?? "")),
  ]);
  return plus.map((x, i) => Math.fround(x - (minus[i] as number)));
}

/** Return the embedding of a token. */
async function embeddingOf(session: Session, _: Edit, text: string): Promise<number[]> {
  const { tokens } = await session.fetch<Tokens>(session.modelViewPath("tokens", { text }));
  const own = tokens.filter((token) => !token.special),
    [one] = own;
  if (!one || own.length > 1)
    throw new ApiError(
      `“${text}” is ${own.length} tokens, but exactly one is required: a leading space may make a word one token`,
      400,
    );
  return (await session.fetch<Embedding>(session.modelViewPath("embedding", { token: one.id, n: 1 }))).row.map((x) =>
    Math.fround(num(x)),
  ); // the JSON has nine digits, enough for a float32
}

/** Return the activation at the point of an edit, for the last token of a text. */
async function lastActivation(session: Session, edit: Edit, text: string): Promise<number[]> {
  const { id } = await session.traceText(text);
  return [
    ...(await session.fetch<Tensor>(`/v1/traces/${id}/tensors/${String(edit["point"])}?slice=-1&dtype=f32`, "tensor"))
      .data,
  ];
}
