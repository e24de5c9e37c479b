/** A sweep's rows as a table of fields, filled in whatever order they come. */
import type { Anatomy, Attention, Swept } from "../shapes.js";
import { num } from "./number.js";
import { placeOf } from "./words.js";

const BRANCHES = ["attn.add", "mlp.add"];
const ENTERS = "where the tokens enter";
const STATES = "what is read of the source";

export class Table {
  readonly tokens: boolean; // whether a column is a token
  readonly heads: boolean; // ... or a head
  readonly enters: boolean; // one row: each token where it enters
  readonly source: boolean; // a token is one of the source
  #one: string; // what the only row is called, where there is one
  #rows: string[];
  #columns: string[];
  #found = new Map<string, Swept>();

  /** `last`: the token after which is measured. `side`: whose attention, in a model that reads a source of `source` tokens. */
  constructor(over: string, anatomy: Anatomy, last: number, side: Attention = "attn", source = 0) {
    this.tokens = over === "positions" || over === "cells";
    this.heads = over === "heads";
    this.enters = over === "positions";
    this.source = side !== "attn" || anatomy.kind === "recurrent";
    const stack = side === "encoder" ? anatomy.encoder : anatomy.layers,
      prefix = side === "encoder" ? "encoder." : "";
    this.#one = this.source && side !== "encoder" ? STATES : ENTERS;
    this.#rows = this.enters ? [this.#one] : stack.map((_, i) => `${prefix}blocks.${i}`);
    const numbers = (n: number) => Array.from({ length: n }, (_, i) => String(i));
    const branches = side === "cross" ? ["cross.add"] : BRANCHES;
    this.#columns = this.tokens
      ? numbers(this.source ? source : last + 1)
      : this.heads
        ? numbers(Math.max(...stack.map((one) => one.n_heads)))
        : [...branches];
  }

  add(one: Swept): void {
    const [row, column] = this.#place(one);
    if (!this.#rows.includes(row)) this.#rows.push(row);
    if (!this.#columns.includes(column)) this.#columns.push(column);
    this.#found.set(`${row} ${column}`, one);
  }

  get rows(): number {
    return this.#rows.length;
  }

  get columns(): number {
    return this.#columns.length;
  }

  get done(): number {
    return this.#found.size;
  }

  /** What each edit changes; undefined where it has not been tried. */
  get data(): (number | undefined)[] {
    return this.#rows.flatMap((row) =>
      this.#columns.map((column) => {
        const one = this.#found.get(`${row} ${column}`);
        return one && num(one.change);
      }),
    );
  }

  /** How many are no number. */
  get odd(): number {
    return [...this.#found.values()].filter((one) => !Number.isFinite(num(one.change))).length;
  }

  /** The one that changes most. */
  get most(): Swept | null {
    const size = (one: Swept) => Math.abs(num(one.change));
    return [...this.#found.values()]
      .filter((one) => Number.isFinite(size(one)))
      .reduce<Swept | null>((best, one) => (best && size(best) >= size(one) ? best : one), null);
  }

  row(at: { row: number; column: number }): Swept | null {
    return this.#found.get(`${this.#rows[at.row]} ${this.#columns[at.column]}`) ?? null;
  }

  placeOf(one: Swept): { row: number; column: number } {
    const [row, column] = this.#place(one);
    return { row: this.#rows.indexOf(row), column: this.#columns.indexOf(column) };
  }

  rowName(i: number): string {
    return (this.#rows[i] ?? "").replace("encoder.", "encoder ").replace("blocks.", "block ");
  }

  columnName(i: number): string {
    const column = this.#columns[i] ?? "";
    return this.tokens ? column : this.heads ? `head ${column}` : placeOf(column);
  }

  /** The row and column that an edit stands in. */
  #place({ edit, head, position }: Swept): [string, string] {
    const [, block, end] = /^((?:encoder\.)?blocks\.\d+)\.(.+)$/.exec(String(edit["point"])) ?? [
      null,
      "",
      String(edit["point"]),
    ];
    return [this.enters ? this.#one : (block ?? ""), String(head ?? position ?? end)];
  }
}
