import { expect, test } from "vitest";
import { loudest, players } from "../src/first.js";

test("the heads of the first role that is played well", () => {
  const scores = {
    previous_token: [[0.9, 0.1]],
    duplicate: [[0.2, 0.1]],
    induction: [
      [0.1, 0.5],
      [0.4, "NaN" as const],
    ],
  };
  expect(players(scores)).toEqual([
    { layer: 0, head: 1, score: 0.5 },
    { layer: 1, head: 0, score: 0.4 },
  ]);
  expect(players({ ...scores, induction: [["NaN" as const]] })).toEqual([{ layer: 0, head: 0, score: 0.9 }]);
  expect(players({ self: [[1]] })).toEqual([]);
});

test("where a row is loudest, apart from where heads rest", () => {
  expect(loudest([0.6, 0.1, 0.2, 0.05, 0.05], 3)).toEqual({ key: 2, share: 0.2 });
  expect(loudest([1], 0)).toEqual({ key: 0, share: 1 });
  expect(loudest([0.4, 0.6], 1)).toEqual({ key: 0, share: 0.4 });
});
