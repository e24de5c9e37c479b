/** The state of the page as stored in its address, so that a link restores it. */

import { tourStepFor } from "../tour_views.js";

/**
 * An edit in its JSON form (glassformer/inspect/edits/edit.py), with additional fields for links:
 * `off`: disabled; `from_text`: source text of a patch; `of`, `plus`, `minus`: the operands of a difference vector.
 */
export type Edit = Record<string, string | number | boolean | null | number[]>;

export interface Address {
  view: string;
  model: string; // "": the first model of the server
  text: string;
  max_tokens: number; // number of tokens to generate
  temperature: number;
  seed: number;
  layer: number; // -1: not selected; also for the fields below
  head: number;
  query: number;
  key: number;
  edits: Edit[];
  tour_step: number; // of the guided tour; -1: closed; the default depends on the view
  options: Record<string, string>; // options of single views
}

export const DEFAULT_ADDRESS: Address = {
  view: "cell",
  model: "",
  text:
    "Once Max got a key. Soon Ann found a shell. Max gave the key to Ann. Later Ann left the shell in Quito. " +
    "Soon Max ran to Bath.\nWhere is the shell?",
  max_tokens: 10,
  temperature: 0,
  seed: 0,
  layer: -1,
  head: -1,
  query: -1,
  key: -1,
  edits: [],
  tour_step: 0,
  options: {},
};

const INTEGERS = ["max_tokens", "seed", "layer", "head", "query", "key"] as const;

/** Format an address such as `#/cell?layer=2&head=1`. Default values are left out. */
export function formatAddress(address: Address): string {
  const fields = new URLSearchParams();
  if (address.model !== DEFAULT_ADDRESS.model) fields.set("model", address.model);
  if (address.text !== DEFAULT_ADDRESS.text) fields.set("text", address.text);
  if (address.temperature !== DEFAULT_ADDRESS.temperature) fields.set("temperature", String(address.temperature));
  for (const name of INTEGERS) if (address[name] !== DEFAULT_ADDRESS[name]) fields.set(name, String(address[name]));
  if (address.tour_step !== tourStepFor(address.view, 0)) fields.set("step", String(address.tour_step));
  if (address.edits.length) fields.set("edits", JSON.stringify(address.edits));
  for (const [name, value] of Object.entries(address.options)) fields.set(`_${name}`, value);
  const query = fields.toString();
  return `#/${address.view}${query ? `?${query}` : ""}`;
}

/** Parse an address. Invalid values become their defaults. */
export function parseAddress(hash: string): Address {
  const match = /^#\/([a-z0-9-]*)(?:\?(.*))?$/s.exec(hash);
  const address: Address = { ...DEFAULT_ADDRESS, edits: [], options: {} };
  if (!match) return address;
  if (match[1]) address.view = match[1];
  const fields = new URLSearchParams(match[2] ?? "");
  address.model = fields.get("model") ?? DEFAULT_ADDRESS.model;
  address.text = fields.get("text") ?? DEFAULT_ADDRESS.text;
  address.temperature = number(fields.get("temperature"), DEFAULT_ADDRESS.temperature, 0, 2);
  for (const name of INTEGERS)
    address[name] = Math.trunc(number(fields.get(name), DEFAULT_ADDRESS[name], -1, Number.MAX_SAFE_INTEGER));
  address.tour_step = Math.trunc(number(fields.get("step"), tourStepFor(address.view, 0), -1, 99));
  address.edits = edits(fields.get("edits"));
  for (const [name, value] of fields) if (name.startsWith("_")) address.options[name.slice(1)] = value;
  return address;
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
