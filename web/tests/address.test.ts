import { expect, test } from "vitest";
import { read, START, write } from "../src/lib/address.js";

test("the start is a short address, and comes back", () => {
  expect(write(START)).toBe("#/cell");
  expect(read("#/cell")).toEqual(START);
  expect(read("")).toEqual(START);
});

test("everything that a link holds comes back", () => {
  const place = {
    view: "grid",
    model: "a/b ü",
    text: "100% of\nit & #more? = yes + no",
    write: 3,
    temperature: 0.7,
    seed: 11,
    layer: 2,
    head: 0,
    query: 17,
    key: 5,
    edits: [{ op: "ablate", point: "blocks.5.attn.z", head: 3 }],
    step: -1,
    more: { dim: "4", by: "a=b" },
  };
  expect(read(write(place))).toEqual(place);
});

test("what cannot be read stands as at the start", () => {
  const place = read("#/cell?layer=two&seed=&edits=[1,&temperature=9&write=-5&head=1.9");
  expect(place).toEqual({ ...START, temperature: 2, write: -1, head: 1 });
  expect(read("#/cell?edits=[1,null]").edits).toEqual([]);
  expect(read("nonsense")).toEqual(START);
});
