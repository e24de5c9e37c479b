import { expect, test } from "vitest";
import { Table } from "../src/lib/swept.js";
import { inPython, inWords } from "../src/lib/words.js";
import type { Anatomy, Swept } from "../src/shapes.js";

test.each([
  [
    { op: "ablate", point: "blocks.1.attn.z", head: 3 },
    "block 1, head 3 silenced",
    'ablate("blocks.1.attn.z", head=3)',
  ],
  [
    { op: "scale", point: "blocks.2.mlp.add", factor: -0.5, position: 4 },
    "block 2, feed-forward, at token 4 × −0.5",
    'scale("blocks.2.mlp.add", -0.5, position=4)',
  ],
  [
    { op: "knockout", point: "blocks.0.attn.scores", query: -1, key: 2 },
    "block 0, all heads: no query as it writes sees key 2",
    'knockout("blocks.0.attn.scores", query=-1, key=2)',
  ],
  [
    { op: "replace", point: "blocks.1.attn.scores", head: 0, query: 5, key: 2, value: "NaN" },
    "block 1, attn.scores, head 0, query 5, key 2 set to NaN",
    'replace("blocks.1.attn.scores", float("NaN"), head=0, query=5, key=2)',
  ],
  [
    { op: "add", point: "blocks.2.resid_post", of: "tokens", plus: " Rome", minus: " Oslo", factor: 60, position: -1 },
    "block 2, the stream after it, as it writes + 60 × (·Rome − ·Oslo)",
    'add("blocks.2.resid_post", lm.model.embed.weight[lm.encode(" Rome")[-1]] - lm.model.embed.weight[lm.encode(" Oslo")[-1]], scale=60, position=-1)',
  ],
  [
    { op: "patch", point: "blocks.0.resid_pre", from_text: 'Say "a"' },
    'block 0, the stream before it as in “Say "a"”',
    'patch("blocks.0.resid_pre", lm.trace("Say \\"a\\""))',
  ],
])("%o in words and in Python", (edit, words, python) => {
  expect(inWords(edit)).toBe(words);
  expect(inPython(edit)).toBe(python);
});

const anatomy = { layers: [{ n_heads: 2 }, { n_heads: 2 }] } as Anatomy;
const row = (layer: number, head: number, change: number | "NaN"): Swept => ({
  layer,
  head,
  position: null,
  value: change,
  change,
  done: 1,
  total: 4,
  edit: { op: "ablate", point: `blocks.${layer}.attn.z`, head },
});

test("a table is filled in whatever order rows come", () => {
  const table = new Table("heads", anatomy, 9);
  table.add(row(1, 0, -3));
  table.add(row(0, 1, "NaN"));
  expect(table.data).toEqual([undefined, NaN, -3, undefined]);
  expect([table.done, table.odd, table.most?.layer]).toEqual([2, 1, 1]);
  expect(table.row({ row: 1, column: 0 })?.change).toBe(-3);
  expect(table.row({ row: 1, column: 1 })).toBeNull();
});

test("a row that was not foreseen has a place of its own", () => {
  const table = new Table("layers", anatomy, 9);
  table.add({ ...row(0, 0, 1), head: null, edit: { op: "ablate", point: "encoder.blocks.0.attn.add" } });
  expect([table.rows, table.rowName(2), table.columnName(0)]).toEqual([3, "encoder block 0", "attention"]);
});
