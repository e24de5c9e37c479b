/** Edits in the form that the server accepts: texts become trace ids, differences become vectors. */
import type { Edit } from "./lib/address.js";
import { num } from "./lib/number.js";
import type { Tensor } from "./lib/tensor.js";
import type { Embedding, Tokens, TraceInfo } from "./api_types.js";
import { ApiError, type Transport } from "./transport.js";

/** What resolving an edit needs: requests to the server, and traces of other texts. `Session` has it. */
interface Source {
  readonly transport: Transport;
  fetch<T>(path: string, kind?: "json" | "tensor"): Promise<T>;
  modelViewPath(view: string, parameters: Record<string, string | number>): string;
  traceText(prompt: string): Promise<TraceInfo>;
}

const LINK_FIELDS = new Set(["off", "from_text", "of", "plus", "minus"]); // not accepted by the server

export const toServerEdits = (source: Source, edits: Edit[], signal?: AbortSignal): Promise<Edit[]> =>
  Promise.all(edits.map((edit) => toServerEdit(source, edit, signal)));

async function toServerEdit(source: Source, edit: Edit, signal?: AbortSignal): Promise<Edit> {
  const plain = Object.fromEntries(Object.entries(edit).filter(([name]) => !LINK_FIELDS.has(name)));
  const { from_text, of } = edit;
  if (typeof from_text === "string") return { ...plain, from_trace: (await source.traceText(from_text)).id };
  if (of === undefined) return plain;
  const values = await difference(source, edit);
  const named = await source.transport.post<{ vector: string }>("/v1/vectors", { values }, signal);
  return { ...plain, vector: named.vector };
}

/** Return the float32 values of the vector that an edit adds. */
async function difference(source: Source, edit: Edit): Promise<number[]> {
  const of = edit["of"] === "tokens" ? embeddingOf : lastActivation;
  const [plus, minus] = await Promise.all([
    of(source, edit, String(edit["plus"] ?? "")),
    of(source, edit, String(edit["minus"] ?? "")),
  ]);
  return plus.map((x, i) => Math.fround(x - (minus[i] as number)));
}

/** Return the embedding of a token. */
async function embeddingOf(source: Source, _: Edit, text: string): Promise<number[]> {
  const { tokens } = await source.fetch<Tokens>(source.modelViewPath("tokens", { text }));
  const own = tokens.filter((token) => !token.special),
    [one] = own;
  if (!one || own.length > 1)
    throw new ApiError(
      `“${text}” is ${own.length} tokens, but exactly one is required: a leading space may make a word one token`,
      400,
    );
  return (await source.fetch<Embedding>(source.modelViewPath("embedding", { token: one.id, n: 1 }))).row.map((x) =>
    Math.fround(num(x)),
  ); // the JSON has nine digits, enough for a float32
}

/** Return the activation at the point of an edit, for the last token of a text. */
async function lastActivation(source: Source, edit: Edit, text: string): Promise<number[]> {
  const { id } = await source.traceText(text);
  return [
    ...(await source.fetch<Tensor>(`/v1/traces/${id}/tensors/${String(edit["point"])}?slice=-1&dtype=f32`, "tensor"))
      .data,
  ];
}
