/** The results of a sweep as a table, filled in any order. */
import type { Anatomy, Attention, SweepResult } from "../api_types.js";
import { num } from "./number.js";
import { describePoint } from "./edit_text.js";

const BRANCHES = ["attn.add", "mlp.add"];
const ENTERS = "embedding";
const STATES = "source states";

export class SweepTable {
  readonly tokens: boolean; // whether a column is a token
  readonly heads: boolean; // ... or a head
  readonly embedding: boolean; // one row: the embedding of each token
  readonly source: boolean; // tokens are those of the source
  #one: string; // name of the only row
  #rows: string[];
  #columns: string[];
  #found = new Map<string, SweepResult>();

  /** `last`: the measured position. `side`: which attention, in a model with a source of `source` tokens. */
  constructor(over: string, anatomy: Anatomy, last: number, side: Attention = "attn", source = 0) {
    this.tokens = over === "positions" || over === "cells";
    this.heads = over === "heads";
    this.embedding = over === "positions";
    this.source = side !== "attn" || anatomy.kind === "recurrent";
    const stack = side === "encoder" ? anatomy.encoder : anatomy.layers,
      prefix = side === "encoder" ? "encoder." : "";
    this.#one = this.source && side !== "encoder" ? STATES : ENTERS;
    this.#rows = this.embedding ? [this.#one] : stack.map((_, i) => `${prefix}blocks.${i}`);
    const numbers = (n: number) => Array.from({ length: n }, (_, i) => String(i));
    const branches = side === "cross" ? ["cross.add"] : BRANCHES;
    this.#columns = this.tokens
      ? numbers(this.source ? source : last + 1)
      : this.heads
        ? numbers(Math.max(...stack.map((one) => one.n_heads)))
        : [...branches];
  }

  add(one: SweepResult): void {
    const [row, column] = this.#names(one);
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

  /** The effect of each edit; undefined if it is pending. */
  get data(): (number | undefined)[] {
    return this.#rows.flatMap((row) =>
      this.#columns.map((column) => {
        const one = this.#found.get(`${row} ${column}`);
        return one && num(one.change);
      }),
    );
  }

  /** The number of non-finite effects. */
  get nonFinite(): number {
    return [...this.#found.values()].filter((one) => !Number.isFinite(num(one.change))).length;
  }

  /** The result with the largest effect. */
  get largest(): SweepResult | null {
    const size = (one: SweepResult) => Math.abs(num(one.change));
    return [...this.#found.values()]
      .filter((one) => Number.isFinite(size(one)))
      .reduce<SweepResult | null>((best, one) => (best && size(best) >= size(one) ? best : one), null);
  }

  row(at: { row: number; column: number }): SweepResult | null {
    return this.#found.get(`${this.#rows[at.row]} ${this.#columns[at.column]}`) ?? null;
  }

  cellOf(one: SweepResult): { row: number; column: number } {
    const [row, column] = this.#names(one);
    return { row: this.#rows.indexOf(row), column: this.#columns.indexOf(column) };
  }

  rowName(i: number): string {
    return (this.#rows[i] ?? "").replace("encoder.", "encoder ").replace("blocks.", "block ");
  }

  columnName(i: number): string {
    const column = this.#columns[i] ?? "";
    return this.tokens ? column : this.heads ? `head ${column}` : describePoint(column);
  }

  /** Return the row and column names of a result. */
  #names({ edit, head, position }: SweepResult): [string, string] {
    const [, block, end] = /^((?:encoder\.)?blocks\.\d+)\.(.+)$/.exec(String(edit["point"])) ?? [
      null,
      "",
      String(edit["point"]),
    ];
    return [this.embedding ? this.#one : (block ?? ""), String(head ?? position ?? end)];
  }
}
