/** Square tiles of a matrix. */

export interface Tile {
  top: number;
  left: number;
  size: number;
}

export const TILE_SIZES = [128, 64, 32, 16, 8] as const; // cells along a side

/** Return a tile within [rows, columns] that contains the cursor; an unchanged one if the cursor is still inside. */
export function tileAround(
  tile: Tile | null,
  size: number,
  row: number,
  column: number,
  rows: number,
  columns: number,
): Tile {
  const move = (old: number | undefined, at: number, n: number): number => {
    const start = old !== undefined && at >= old && at < old + size ? old : at - Math.floor(size / 2);
    return Math.max(0, Math.min(n - size, start));
  };
  const same = tile?.size === size ? tile : null;
  return { top: move(same?.top, row, rows), left: move(same?.left, column, columns), size };
}

/** Return the values of a tile. */
export function tileValues(data: ArrayLike<number>, columns: number, { top, left, size }: Tile): Float32Array {
  return Float32Array.from(
    { length: size * size },
    (_, i) => data[(top + Math.floor(i / size)) * columns + left + (i % size)] as number,
  );
}
