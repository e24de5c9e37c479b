import { expect, test } from "vitest";
import { SweepTable } from "../src/lib/sweep_table.js";
import { pythonEdit, describeEdit } from "../src/lib/edit_text.js";
import type { Anatomy, SweepResult } from "../src/api_types.js";

test.each([
  [{ op: "ablate", point: "blocks.1.attn.z", head: 3 }, "block 1, head 3 ablated", 'ablate("blocks.1.attn.z", head=3)'],
  [
    { op: "scale", point: "blocks.2.mlp.add", factor: -0.5, position: 4 },
    "block 2, feed-forward, at token 4 × −0.5",
    'scale("blocks.2.mlp.add", -0.5, position=4)',
  ],
  [
    { op: "knockout", point: "blocks.0.attn.scores", query: -1, key: 2 },
    "block 0, all heads: key 2 masked for generated queries",
    'knockout("blocks.0.attn.scores", query=-1, key=2)',
  ],
  [
    { op: "replace", point: "blocks.1.attn.scores", head: 0, query: 5, key: 2, value: "NaN" },
    "block 1, attn.scores, head 0, query 5, key 2 set to NaN",
    'replace("blocks.1.attn.scores", float("NaN"), head=0, query=5, key=2)',
  ],
  [
    { op: "add", point: "blocks.2.resid_post", of: "tokens", plus: " Rome", minus: " Oslo", factor: 60, position: -1 },
    "block 2, residual stream after the block, at generated tokens + 60 × (·Rome − ·Oslo)",
    'add("blocks.2.resid_post", lm.model.embed.weight[lm.encode(" Rome")[-1]] - ' +
      'lm.model.embed.weight[lm.encode(" Oslo")[-1]], scale=60, position=-1)',
  ],
  [
    { op: "patch", point: "blocks.0.resid_pre", from_text: 'Say "a"' },
    'block 0, residual stream before the block patched from “Say "a"”',
    'patch("blocks.0.resid_pre", lm.trace("Say \\"a\\""))',
  ],
])("describes %o in English and in Python", (edit, description, python) => {
  expect(describeEdit(edit)).toBe(description);
  expect(pythonEdit(edit)).toBe(python);
});

const anatomy = { layers: [{ n_heads: 2 }, { n_heads: 2 }] } as Anatomy;
const row = (layer: number, head: number, change: number | "NaN"): SweepResult => ({
  layer,
  head,
  position: null,
  value: change,
  change,
  done: 1,
  total: 4,
  edit: { op: "ablate", point: `blocks.${layer}.attn.z`, head },
});

test("sweep table accepts rows in any order", () => {
  const table = new SweepTable("heads", anatomy, 9);
  table.add(row(1, 0, -3));
  table.add(row(0, 1, "NaN"));
  expect(table.data).toEqual([undefined, NaN, -3, undefined]);
  expect([table.done, table.nonFinite, table.largest?.layer]).toEqual([2, 1, 1]);
  expect(table.row({ row: 1, column: 0 })?.change).toBe(-3);
  expect(table.row({ row: 1, column: 1 })).toBeNull();
});

test("sweep table adds a row for an unexpected point", () => {
  const table = new SweepTable("layers", anatomy, 9);
  table.add({ ...row(0, 0, 1), head: null, edit: { op: "ablate", point: "encoder.blocks.0.attn.add" } });
  expect([table.rows, table.rowName(2), table.columnName(0)]).toEqual([3, "encoder block 0", "attention"]);
});
