/** Small pictures of heads, out of the bytes that they come in. */
import type { Grid } from "../shapes.js";
import { fromBase64 } from "./tensor.js";

/** One array of shares for each head. */
export function unpack(grid: Grid): Float32Array[] {
  const all = Float32Array.from(fromBase64(grid.pictures), (byte) => byte / 255),
    size = grid.rows * grid.columns;
  return Array.from({ length: grid.heads }, (_, head) => all.subarray(head * size, (head + 1) * size));
}
