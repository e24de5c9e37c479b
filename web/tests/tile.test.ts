import { describe, expect, it } from "vitest";
import { tileValues, tileAround } from "../src/components/tile.js";

describe("tile", () => {
  it("contains the cursor and moves only when the cursor leaves it", () => {
    const first = tileAround(null, 8, 20, 3, 40, 40);
    expect(first).toEqual({ top: 16, left: 0, size: 8 });
    expect(tileAround(first, 8, 23, 7, 40, 40)).toEqual(first);
    expect(tileAround(first, 8, 24, 7, 40, 40)).toEqual({ top: 20, left: 0, size: 8 });
    expect(tileAround(first, 16, 39, 39, 40, 40)).toEqual({ top: 24, left: 24, size: 16 });
  });
  it("returns its values row by row", () => {
    const data = Float32Array.from({ length: 30 }, (_, i) => i); // 5 rows of 6
    expect([...tileValues(data, 6, { top: 1, left: 2, size: 3 })]).toEqual([8, 9, 10, 14, 15, 16, 20, 21, 22]);
  });
});
