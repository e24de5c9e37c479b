/** Decoder of attention thumbnails. */
import type { Grid } from "../api_types.js";
import { fromBase64 } from "./tensor.js";

/** Return one array of attention weights for each head. */
export function unpackThumbnails(grid: Grid): Float32Array[] {
  const all = Float32Array.from(fromBase64(grid.pixels), (byte) => byte / 255),
    size = grid.rows * grid.columns;
  return Array.from({ length: grid.heads }, (_, head) => all.subarray(head * size, (head + 1) * size));
}
