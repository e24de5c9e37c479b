/**
 * Colour maps and their inverses. Every map is strictly monotone, so a pixel can be converted back to its value.
 *
 * Fractions (0 to 1) map from paper to ink, with a square root to emphasise small values. Signed values map from
 * graphite (negative) over paper (zero) to the hue of their meaning (positive): queries are blue in every view.
 */
export type Rgb = readonly [number, number, number];
export type Meaning = "query" | "key" | "value" | "residual" | "forward" | "plain";
export type Scheme = "light" | "dark";

const PAPER: Record<Scheme, Rgb> = { light: [250, 249, 246], dark: [26, 29, 34] };
const GRAPHITE: Record<Scheme, Rgb> = { light: [72, 74, 80], dark: [214, 212, 206] };
const INK: Record<Scheme, readonly Rgb[]> = {
  light: [
    [250, 249, 246],
    [206, 212, 222],
    [133, 148, 172],
    [66, 80, 112],
    [20, 26, 46],
  ],
  dark: [
    [26, 29, 34],
    [58, 70, 92],
    [104, 126, 160],
    [168, 190, 216],
    [250, 248, 240],
  ],
};
const HUE: Record<Scheme, Record<Meaning, Rgb>> = {
  light: {
    query: [0, 84, 158],
    key: [182, 66, 0],
    value: [0, 106, 78],
    residual: [156, 110, 0],
    forward: [132, 46, 140],
    plain: [20, 26, 46],
  },
  dark: {
    query: [112, 184, 242],
    key: [246, 150, 92],
    value: [74, 204, 160],
    residual: [232, 190, 72],
    forward: [218, 150, 226],
    plain: [150, 196, 240],
  },
};

/** Return the colour of a fraction. */
export function fractionColour(share: number, scheme: Scheme): Rgb {
  return along(INK[scheme], Math.sqrt(clamp(share, 0, 1)));
}

/** Return the colour of a signed value; `top` is the largest absolute value. */
export function signedColour(value: number, top: number, meaning: Meaning, scheme: Scheme): Rgb {
  const part = top > 0 ? clamp(value / top, -1, 1) : 0;
  return along([PAPER[scheme], part < 0 ? GRAPHITE[scheme] : HUE[scheme][meaning]], Math.sqrt(Math.abs(part)));
}

/** Return the fraction with the nearest colour: the inverse of `fractionColour`. */
export function fractionOf(colour: Rgb, scheme: Scheme): number {
  return nearest(INK[scheme], colour).at ** 2;
}

/** Return the signed value with the nearest colour: the inverse of `signedColour`. */
export function signedOf(colour: Rgb, top: number, meaning: Meaning, scheme: Scheme): number {
  const down = nearest([PAPER[scheme], GRAPHITE[scheme]], colour);
  const up = nearest([PAPER[scheme], HUE[scheme][meaning]], colour);
  return top * (down.off < up.off ? -(down.at ** 2) : up.at ** 2);
}

/** Return black or white, whichever has the higher contrast on a colour. */
export function readable(colour: Rgb): string {
  const [r, g, b] = colour.map((c) =>
    c / 255 <= 0.04045 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4,
  ) as unknown as Rgb;
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

export const css = ([r, g, b]: Rgb): string => `rgb(${r} ${g} ${b})`;

export const currentScheme = (): Scheme =>
  typeof matchMedia === "function" && matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";

/** Call `changed` when the colour scheme changes. Returns a function that unsubscribes. */
export function onColourSchemeChange(changed: () => void): () => void {
  const query = matchMedia("(prefers-color-scheme: dark)");
  query.addEventListener("change", changed);
  return () => query.removeEventListener("change", changed);
}

/** An opaque pixel as a 32-bit word of ImageData (little-endian). */
export const pixel = ([r, g, b]: Rgb): number => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;

function along(stops: readonly Rgb[], at: number): Rgb {
  const position = at * (stops.length - 1);
  const i = Math.min(stops.length - 2, Math.floor(position));
  const from = stops[i] as Rgb,
    to = stops[i + 1] as Rgb,
    t = position - i;
  return [0, 1, 2].map((c) => Math.round((from[c] as number) * (1 - t) + (to[c] as number) * t)) as unknown as Rgb;
}

function nearest(stops: readonly Rgb[], colour: Rgb): { at: number; off: number } {
  let best = { at: 0, off: Infinity };
  for (let i = 0; i + 1 < stops.length; i++) {
    const from = stops[i] as Rgb,
      to = stops[i + 1] as Rgb;
    const d = [0, 1, 2].map((c) => (to[c] as number) - (from[c] as number));
    const e = [0, 1, 2].map((c) => (colour[c] as number) - (from[c] as number));
    const dot = (a: number[], b: number[]) => a.reduce((sum, x, c) => sum + x * (b[c] as number), 0);
    const t = clamp(dot(d, e) / dot(d, d), 0, 1);
    const off = e.reduce((sum, x, c) => sum + (x - t * (d[c] as number)) ** 2, 0);
    if (off < best.off) best = { at: (i + t) / (stops.length - 1), off };
  }
  return best;
}

const clamp = (x: number, low: number, high: number): number => Math.min(high, Math.max(low, x));
