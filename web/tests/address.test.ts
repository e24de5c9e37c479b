import { expect, test } from "vitest";
import { parseAddress, DEFAULT_ADDRESS, formatAddress } from "../src/lib/address.js";

test("formats and parses the default address", () => {
  expect(formatAddress(DEFAULT_ADDRESS)).toBe("#/cell");
  expect(parseAddress("#/cell")).toEqual(DEFAULT_ADDRESS);
  expect(parseAddress("")).toEqual(DEFAULT_ADDRESS);
});

test("round-trips every field of the address", () => {
  const address = {
    view: "grid",
    model: "a/b ü",
    text: "100% of\nit & #more? = yes + no",
    max_tokens: 3,
    temperature: 0.7,
    seed: 11,
    layer: 2,
    head: 0,
    query: 17,
    key: 5,
    edits: [{ op: "ablate", point: "blocks.5.attn.z", head: 3 }],
    tour_step: -1,
    options: { dim: "4", by: "a=b" },
  };
  expect(parseAddress(formatAddress(address))).toEqual(address);
});

test("replaces invalid values by defaults", () => {
  const address = parseAddress("#/cell?layer=two&seed=&edits=[1,&temperature=9&max_tokens=-5&head=1.9");
  expect(address).toEqual({ ...DEFAULT_ADDRESS, temperature: 2, max_tokens: -1, head: 1 });
  expect(parseAddress("#/cell?edits=[1,null]").edits).toEqual([]);
  expect(parseAddress("nonsense")).toEqual(DEFAULT_ADDRESS);
});
