/** An edit in plain words, and as the line of Python that makes it. */
import type { Edit } from "./address.js";
import { visible } from "./visible.js";

const PLACES: Record<string, string> = {
  "attn.z": "all heads",
  "cross.z": "all heads that look at the source",
  "attn.add": "attention",
  "cross.add": "attention to the source",
  "mlp.add": "feed-forward",
  resid_pre: "the stream before it",
  resid_mid: "the stream after its attention",
  resid_post: "the stream after it",
};
const LONG = 24; // characters of a text that are told

type Given = Edit[string] | undefined;
const given = (value: Given): boolean => value !== undefined && value !== null;

/** "block 1, head 3 silenced". */
export function inWords(edit: Edit): string {
  return `${subject(edit)}${edit["op"] === "knockout" ? ":" : ""} ${done(edit)}`;
}

function subject(edit: Edit): string {
  const [, side, block, end] = /^(encoder\.)?blocks\.(\d+)\.(.+)$/.exec(String(edit["point"])) ?? [
    null,
    "",
    "",
    String(edit["point"]),
  ];
  const heads = end === "attn.z" || end === "cross.z",
    { head, position, dim, query, key } = edit;
  const words = [
    block ? `${side ? "encoder " : ""}block ${block}` : "",
    heads && given(head)
      ? (end === "cross.z" ? "source " : "") + `head ${several(head)}`
      : edit["op"] === "knockout"
        ? given(head)
          ? `head ${several(head)}`
          : "all heads"
        : placeOf(end ?? ""),
    !heads && edit["op"] !== "knockout" && given(head) ? `head ${several(head)}` : "",
    given(position) ? (position === -1 ? "as it writes" : `at token ${several(position)}`) : "",
    edit["op"] === "knockout"
      ? ""
      : [given(query) ? `query ${several(query)}` : "", given(key) ? `key ${several(key)}` : ""]
          .filter(Boolean)
          .join(", "),
    given(dim) ? `number ${several(dim)}` : "",
  ];
  return words.filter(Boolean).join(", ");
}

/** A point in words, where it has some. */
export const placeOf = (end: string): string => PLACES[end] ?? end;

function done(edit: Edit): string {
  const { op, factor, value } = edit;
  if (op === "ablate") return "silenced";
  if (op === "scale") return `× ${minus(factor)}`;
  if (op === "replace") return `set to ${given(value) ? minus(value) : "a vector"}`;
  if (op === "patch")
    return `as in ${given(edit["from_text"]) ? `“${start(String(edit["from_text"]))}”` : "another text"}`;
  if (op === "knockout")
    return `${
      given(edit["query"])
        ? edit["query"] === -1
          ? "no query as it writes"
          : `query ${several(edit["query"])} no longer`
        : "no query"
    } sees ${given(edit["key"]) ? `key ${several(edit["key"])}` : "any key"}`;
  if (op !== "add") return String(op);
  const times = given(factor) ? `${minus(factor)} × ` : "";
  if (edit["of"] === "tokens")
    return `+ ${times}(${visible(String(edit["plus"]))} − ${visible(String(edit["minus"]))})`;
  if (edit["of"] === "texts") return `+ ${times}(“${start(String(edit["plus"]))}” − “${start(String(edit["minus"]))}”)`;
  return `+ ${times}${given(value) ? minus(value) : "a vector"}`;
}

const minus = (value: Given): string => String(value).replace("-", "−");
const start = (text: string): string =>
  [...text].length > LONG ? `${[...text].slice(0, LONG).join("").trimEnd()}…` : text;
const several = (value: Given): string =>
  Array.isArray(value) && value.length > 3 ? `${value[0]} to ${value.at(-1)}` : String(value);

/** `ablate("blocks.1.attn.z", head=3)`: the functions are those of glassformer/inspect/edit.py. */
export function inPython(edit: Edit): string {
  const { op, value } = edit,
    point = python(edit["point"]);
  const places = ["head", "position", "query", "key", "dim"]
    .filter((name) => given(edit[name]))
    .map((name) => `${name}=${python(edit[name])}`);
  const own: string[] = [];
  if (op === "scale") own.push(python(edit["factor"]));
  if (op === "replace" || op === "add") own.push(given(value) ? python(value) : vector(edit));
  if (op === "add" && given(edit["factor"])) own.push(`scale=${python(edit["factor"])}`);
  if (op === "patch") own.push(given(edit["from_text"]) ? `lm.trace(${python(edit["from_text"])})` : "from_trace");
  return `${String(op)}(${[point, ...own, ...places].join(", ")})`;
}

function vector(edit: Edit): string {
  const point = python(edit["point"]),
    { plus, minus: less } = edit;
  const row = (token: Given) => `lm.model.embed.weight[lm.encode(${python(token)})[-1]]`;
  const last = (text: Given) => `lm.trace(${python(text)})[${point}][-1]`;
  if (edit["of"] === "tokens") return `${row(plus)} - ${row(less)}`;
  if (edit["of"] === "texts") return `${last(plus)} - ${last(less)}`;
  return "vector";
}

/** A value as Python spells it. */
export function python(value: Given): string {
  if (value === "NaN" || value === "Infinity" || value === "-Infinity") return `float("${value}")`;
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value === "boolean") return value ? "True" : "False";
  return Array.isArray(value) ? `(${value.join(", ")},)` : String(value);
}
