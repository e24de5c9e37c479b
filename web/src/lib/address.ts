/** Where one is, as the address says it: everything that a link must bring back. */

import { stepOf } from "../steps.js";

/**
 * An edit in its JSON form (glassformer/inspect/edit.py), and what a link needs beside it, which no server has to remember:
 * `off`: put aside; `from_text`: of a patch, the text to take from; `of`, `plus`, `minus`: what a vector is the difference of.
 */
export type Edit = Record<string, string | number | boolean | null | number[]>;

export interface Place {
  view: string;
  model: string; // "": the server's first
  text: string;
  write: number; // tokens that the model adds
  temperature: number;
  seed: number;
  layer: number; // -1: not chosen yet, and likewise below
  head: number;
  query: number;
  key: number;
  edits: Edit[];
  step: number; // of the guided walk, by default the view's own; -1: none
  more: Record<string, string>; // what one view alone asks for
}

export const START: Place = {
  view: "cell",
  model: "",
  text: "Once Max got a key. Soon Ann found a shell. Max gave the key to Ann. Later Ann left the shell in Quito. Soon Max ran to Bath.\nWhere is the shell?",
  write: 10,
  temperature: 0,
  seed: 0,
  layer: -1,
  head: -1,
  query: -1,
  key: -1,
  edits: [],
  step: 0,
  more: {},
};

const WHOLE = ["write", "seed", "layer", "head", "query", "key"] as const;

/** `#/cell?layer=2&head=1`: what differs from the start alone. */
export function write(place: Place): string {
  const fields = new URLSearchParams();
  if (place.model !== START.model) fields.set("model", place.model);
  if (place.text !== START.text) fields.set("text", place.text);
  if (place.temperature !== START.temperature) fields.set("temperature", String(place.temperature));
  for (const name of WHOLE) if (place[name] !== START[name]) fields.set(name, String(place[name]));
  if (place.step !== stepOf(place.view, 0)) fields.set("step", String(place.step));
  if (place.edits.length) fields.set("edits", JSON.stringify(place.edits));
  for (const [name, value] of Object.entries(place.more)) fields.set(`_${name}`, value);
  const query = fields.toString();
  return `#/${place.view}${query ? `?${query}` : ""}`;
}

/** The place that an address names. What cannot be read stands as it does at the start. */
export function read(hash: string): Place {
  const match = /^#\/([a-z0-9-]*)(?:\?(.*))?$/s.exec(hash);
  const place: Place = { ...START, edits: [], more: {} };
  if (!match) return place;
  if (match[1]) place.view = match[1];
  const fields = new URLSearchParams(match[2] ?? "");
  place.model = fields.get("model") ?? START.model;
  place.text = fields.get("text") ?? START.text;
  place.temperature = number(fields.get("temperature"), START.temperature, 0, 2);
  for (const name of WHOLE)
    place[name] = Math.trunc(number(fields.get(name), START[name], -1, Number.MAX_SAFE_INTEGER));
  place.step = Math.trunc(number(fields.get("step"), stepOf(place.view, 0), -1, 99));
  place.edits = edits(fields.get("edits"));
  for (const [name, value] of fields) if (name.startsWith("_")) place.more[name.slice(1)] = value;
  return place;
}

function number(text: string | null, otherwise: number, low: number, high: number): number {
  const value = text === null || text.trim() === "" ? NaN : Number(text);
  return Number.isFinite(value) ? Math.min(high, Math.max(low, value)) : otherwise;
}

function edits(text: string | null): Edit[] {
  if (text === null) return [];
  try {
    const found: unknown = JSON.parse(text);
    return Array.isArray(found) ? found.filter((one): one is Edit => typeof one === "object" && one !== null) : [];
  } catch {
    return [];
  }
}
