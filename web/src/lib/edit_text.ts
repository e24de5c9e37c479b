/** Descriptions of edits in English and in Python. */
import type { Edit } from "./address.js";
import { visibleText } from "./visible_text.js";

const POINTS: Record<string, string> = {
  "attn.z": "all heads",
  "cross.z": "all cross-attention heads",
  "attn.add": "attention",
  "cross.add": "cross-attention",
  "mlp.add": "feed-forward",
  resid_pre: "residual stream before the block",
  resid_mid: "residual stream after attention",
  resid_post: "residual stream after the block",
};
const MAX_TEXT = 24; // characters of a quoted text

type Given = Edit[string] | undefined;
const isSet = (value: Given): boolean => value !== undefined && value !== null;

/** Describe an edit, for example "block 1, head 3 ablated". */
export function describeEdit(edit: Edit): string {
  return `${describeTarget(edit)}${edit["op"] === "knockout" ? ":" : ""} ${describeOperation(edit)}`;
}

function describeTarget(edit: Edit): string {
  const [, side, block, end] = /^(encoder\.)?blocks\.(\d+)\.(.+)$/.exec(String(edit["point"])) ?? [
    null,
    "",
    "",
    String(edit["point"]),
  ];
  const heads = end === "attn.z" || end === "cross.z",
    { head, position, dim, query, key } = edit;
  const parts = [
    block ? `${side ? "encoder " : ""}block ${block}` : "",
    heads && isSet(head)
      ? (end === "cross.z" ? "cross-attention " : "") + `head ${formatIndices(head)}`
      : edit["op"] === "knockout"
        ? isSet(head)
          ? `head ${formatIndices(head)}`
          : "all heads"
        : describePoint(end ?? ""),
    !heads && edit["op"] !== "knockout" && isSet(head) ? `head ${formatIndices(head)}` : "",
    isSet(position) ? (position === -1 ? "at generated tokens" : `at token ${formatIndices(position)}`) : "",
    edit["op"] === "knockout"
      ? ""
      : [isSet(query) ? `query ${formatIndices(query)}` : "", isSet(key) ? `key ${formatIndices(key)}` : ""]
          .filter(Boolean)
          .join(", "),
    isSet(dim) ? `dim ${formatIndices(dim)}` : "",
  ];
  return parts.filter(Boolean).join(", ");
}

/** Describe the end of a point name. */
export const describePoint = (end: string): string => POINTS[end] ?? end;

function describeOperation(edit: Edit): string {
  const { op, factor, value } = edit;
  if (op === "ablate") return "ablated";
  if (op === "scale") return `× ${minus(factor)}`;
  if (op === "replace") return `set to ${isSet(value) ? minus(value) : "a vector"}`;
  if (op === "patch")
    return isSet(edit["from_text"]) ? `patched from “${truncate(String(edit["from_text"]))}”` : "patched";
  if (op === "knockout")
    return `${isSet(edit["key"]) ? `key ${formatIndices(edit["key"])}` : "all keys"} masked for ${
      !isSet(edit["query"])
        ? "all queries"
        : edit["query"] === -1
          ? "generated queries"
          : `query ${formatIndices(edit["query"])}`
    }`;
  if (op !== "add") return String(op);
  const times = isSet(factor) ? `${minus(factor)} × ` : "";
  if (edit["of"] === "tokens")
    return `+ ${times}(${visibleText(String(edit["plus"]))} − ${visibleText(String(edit["minus"]))})`;
  if (edit["of"] === "texts")
    return `+ ${times}(“${truncate(String(edit["plus"]))}” − “${truncate(String(edit["minus"]))}”)`;
  return `+ ${times}${isSet(value) ? minus(value) : "a vector"}`;
}

const minus = (value: Given): string => String(value).replace("-", "−");
const truncate = (text: string): string =>
  [...text].length > MAX_TEXT ? `${[...text].slice(0, MAX_TEXT).join("").trimEnd()}…` : text;
const formatIndices = (value: Given): string =>
  Array.isArray(value) && value.length > 3 ? `${value[0]} to ${value.at(-1)}` : String(value);

/** Return the Python expression of an edit, for example `ablate("blocks.1.attn.z", head=3)`. */
export function pythonEdit(edit: Edit): string {
  const { op, value } = edit,
    point = pythonLiteral(edit["point"]);
  const indices = ["head", "position", "query", "key", "dim"]
    .filter((name) => isSet(edit[name]))
    .map((name) => `${name}=${pythonLiteral(edit[name])}`);
  const own: string[] = [];
  if (op === "scale") own.push(pythonLiteral(edit["factor"]));
  if (op === "replace" || op === "add") own.push(isSet(value) ? pythonLiteral(value) : vector(edit));
  if (op === "add" && isSet(edit["factor"])) own.push(`scale=${pythonLiteral(edit["factor"])}`);
  if (op === "patch")
    own.push(isSet(edit["from_text"]) ? `lm.trace(${pythonLiteral(edit["from_text"])})` : "from_trace");
  return `${String(op)}(${[point, ...own, ...indices].join(", ")})`;
}

function vector(edit: Edit): string {
  const point = pythonLiteral(edit["point"]),
    { plus, minus: less } = edit;
  const row = (token: Given) => `lm.model.embed.weight[lm.encode(${pythonLiteral(token)})[-1]]`;
  const last = (text: Given) => `lm.trace(${pythonLiteral(text)})[${point}][-1]`;
  if (edit["of"] === "tokens") return `${row(plus)} - ${row(less)}`;
  if (edit["of"] === "texts") return `${last(plus)} - ${last(less)}`;
  return "vector";
}

/** Return the Python literal of a value. */
export function pythonLiteral(value: Given): string {
  if (value === "NaN" || value === "Infinity" || value === "-Infinity") return `float("${value}")`;
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value === "boolean") return value ? "True" : "False";
  return Array.isArray(value) ? `(${value.join(", ")},)` : String(value);
}
