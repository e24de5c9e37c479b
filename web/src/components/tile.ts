/** Square tiles of a matrix. */

export interface Tile {
  top: number;
  left: number;
  size: number;
}

export const TILE_SIZES = [128, 64, 32, 16, 8] as const; // cells along a side

/** Return a tile within [rows, columns] that contains the cursor; an unchanged one if the cursor is still inside. */
export function tileAround(
  piece: Tile | null,
  size: number,
  row: number,
  column: number,
  rows: number,
  columns: number,
): Tile {
  const along = (start: number | undefined, at: number, n: number): number => {
    const kept = start !== undefined && at >= start && at < start + size ? start : at - Math.floor(size / 2);
    return Math.max(0, Math.min(n - size, kept));
  };
  const same = piece?.size === size ? piece : null;
  return { top: along(same?.top, row, rows), left: along(same?.left, column, columns), size };
}

/** Return the values of a tile. */
export function tileValues(data: ArrayLike<number>, columns: number, { top, left, size }: Tile): Float32Array {
  return Float32Array.from(
    { length: size * size },
    (_, i) => data[(top + Math.floor(i / size)) * columns + left + (i % size)] as number,
  );
}
