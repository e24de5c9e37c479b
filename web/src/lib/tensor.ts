/** Binary tensor format of the server: 4 bytes with the length of a JSON header, the header, the raw values. */
import type { Num } from "./number.js";

export interface Header {
  axes: string[];
  shape: number[];
  dtype: "f32" | "f16" | "u8";
  scale: Num | null;
  zero: Num | null;
  pool: number[] | null; // size of the pooling window on the last axes
  bound: Num | null;
  error: Num | null;
  identity: string | null;
}

export interface Tensor extends Header {
  data: Float32Array;
}

/** Decode header and values. u8 values become `zero + scale * byte`, each within `bound` of the exact value. */
export function decode(buffer: ArrayBuffer): Tensor {
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length))) as Header;
  const raw = buffer.slice(4 + length);
  const data = numbers(header, raw);
  const size = header.shape.reduce((a, b) => a * b, 1);
  if (data.length !== size) throw new Error(`tensor has ${data.length} values, expected ${size} from its shape`);
  return { ...header, data };
}

function numbers(header: Header, raw: ArrayBuffer): Float32Array {
  if (header.dtype === "f32") return new Float32Array(raw);
  if (header.dtype === "f16") return Float32Array.from(new Uint16Array(raw), half);
  const scale = Number(header.scale ?? 1),
    zero = Number(header.zero ?? 0);
  return Float32Array.from(new Uint8Array(raw), (byte) => zero + scale * byte);
}

/** Decode an IEEE 754 half-precision number from its 16 bits. */
export function half(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1,
    exponent = (bits >> 10) & 31,
    fraction = bits & 1023;
  if (exponent === 0) return sign * 2 ** -24 * fraction;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * 2 ** (exponent - 15) * (1 + fraction / 1024);
}

/** Decode base64. */
export function fromBase64(text: string): Uint8Array {
  return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
}

/** Return the largest finite absolute value, the largest value, and its index. */
export function largest(data: ArrayLike<number>): { size: number; value: number; at: number } {
  let size = 0,
    value = -Infinity,
    at = 0;
  for (let i = 0; i < data.length; i++) {
    const x = data[i] as number;
    if (Math.abs(x) > size && Number.isFinite(x)) size = Math.abs(x);
    if (x > value) [value, at] = [x, i];
  }
  return { size, value, at };
}

/** Return the indices of the `n` largest values and of `selected`, in ascending order; at most `n` indices. */
export function topIndices(values: readonly number[], n: number, selected: number): number[] {
  const order = values.map((_, i) => i).sort((a, b) => (values[b] as number) - (values[a] as number));
  const top = order.slice(0, n);
  if (!top.includes(selected) && selected < values.length) top.splice(n - 1, 1, selected);
  return top.sort((a, b) => a - b);
}
