/** Number formatting. */

/** A number in JSON; the server sends non-finite floats as strings. */
export type Num = number | "NaN" | "Infinity" | "-Infinity";

export const num = (value: Num): number => Number(value);

const SUPERSCRIPTS: Record<string, string> = Object.fromEntries(
  [..."0123456789-"].map((c, i) => [c, "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"[i] ?? c]),
);

/** Format with three or four significant digits, a minus sign, and no "-0". */
export function short(value: Num, digits = 3): string {
  const x = num(value);
  if (Number.isNaN(x)) return "NaN";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size < 10 ** -digits || size >= 1e6) return power(x);
  const text =
    size >= 1000
      ? Math.round(x).toLocaleString("en-US")
      : x.toFixed(Math.max(0, digits - Math.max(0, Math.floor(Math.log10(size)))));
  return minus(text);
}

/** Format with a fixed number of decimals, for aligned columns. */
export function fixed(value: Num, decimals = 3): string {
  const x = num(value);
  if (!Number.isFinite(x)) return short(x);
  const text = x.toFixed(decimals);
  return minus(Number(text) === 0 ? text.replace("-", "") : text);
}

/** Format in scientific notation, such as 2.4 × 10⁻⁷. */
export function power(value: Num): string {
  const x = num(value);
  if (x === 0 || !Number.isFinite(x)) return short(x);
  const [digits, exponent] = x.toExponential(1).split("e");
  return `${minus(digits ?? "")} × 10${[...String(Number(exponent))].map((c) => SUPERSCRIPTS[c] ?? c).join("")}`;
}

/** Format with all digits of a float32. */
export const exact = (value: Num): string => {
  const x = num(value);
  return Number.isFinite(x) ? minus(String(Number(Math.fround(x).toPrecision(9)))) : short(x);
};

/** Format a value that may be wrong by `bound`, such as 0.286 ± 0.002. */
export function approximate(value: Num, bound: number): string {
  const decimals = Math.max(0, Math.ceil(-Math.log10(bound)));
  return `${fixed(value, decimals)} ± ${fixed(Math.ceil(bound * 10 ** decimals) / 10 ** decimals, decimals)}`;
}

export function percent(share: Num, decimals = 1): string {
  const x = 100 * num(share);
  if (!Number.isFinite(x)) return short(x);
  if (x > 0 && x < 0.5 * 10 ** -decimals) return `< ${10 ** -decimals}%`;
  return `${minus(x.toFixed(decimals))}%`;
}

/** Format with thousands separators, such as 1,234,567. */
export const count = (value: number): string => Math.round(value).toLocaleString("en-US");

/** Format with a unit, such as 1.2M or 724K. */
export function compact(value: number): string {
  for (const [size, unit] of [
    [1e12, "T"],
    [1e9, "B"],
    [1e6, "M"],
    [1e3, "K"],
  ] as const) {
    if (value >= size) return `${(value / size).toPrecision(3).replace(/\.0+$|(\.\d*[1-9])0+$/, "$1")}${unit}`;
  }
  return String(value);
}

/** Format a size in bytes, such as 96 KiB. */
export function bytes(value: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const step = value < 1024 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(value) / 10));
  const scaled = value / 1024 ** step;
  return `${scaled >= 100 || step === 0 ? Math.round(scaled) : scaled.toPrecision(3)} ${units[step] ?? ""}`;
}

const minus = (text: string): string => text.replace("-", "−");
