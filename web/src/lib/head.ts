/** The head's own table, as the map says it: what it reads × what it scores. */
import type { Anatomy } from "../shapes.js";

export function headShape(anatomy: Anatomy): string {
  const table = anatomy.parts.find((part) => part.kind === "head")?.matrices.find((one) => one.shape.length === 2);
  return table
    ? [...table.shape]
        .reverse()
        .map((n) => n.toLocaleString("en-US"))
        .join(" × ")
    : "";
}
