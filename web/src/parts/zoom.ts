/** A piece of a matrix, and how one moves over it: what is in sight follows the cursor, and can be dragged. */

export interface Piece {
  top: number;
  left: number;
  size: number;
}

export const SIZES = [128, 64, 32, 16, 8] as const; // fields along a side, from far to near

/** A piece of this size within [rows, columns] that holds the cursor: where it was as long as the cursor is in it. */
export function follow(
  piece: Piece | null,
  size: number,
  row: number,
  column: number,
  rows: number,
  columns: number,
): Piece {
  const along = (start: number | undefined, at: number, n: number): number => {
    const kept = start !== undefined && at >= start && at < start + size ? start : at - Math.floor(size / 2);
    return Math.max(0, Math.min(n - size, kept));
  };
  const same = piece?.size === size ? piece : null;
  return { top: along(same?.top, row, rows), left: along(same?.left, column, columns), size };
}

/** The numbers of a piece. */
export function cut(data: ArrayLike<number>, columns: number, { top, left, size }: Piece): Float32Array {
  return Float32Array.from(
    { length: size * size },
    (_, i) => data[(top + Math.floor(i / size)) * columns + left + (i % size)] as number,
  );
}
