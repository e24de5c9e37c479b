import { describe, expect, test } from "vitest";
import { EventReader } from "../src/lib/events.js";
import { approximate, bytes, compact, count, exact, fixed, percent, power, short } from "../src/lib/number.js";
import { visibleText } from "../src/lib/visible_text.js";
import { fractionColour, fractionOf, signedColour, signedOf, type Meaning } from "../src/lib/colour.js";
import { decode, fromBase64, half, largest, topIndices } from "../src/lib/tensor.js";

describe("numbers", () => {
  test("short formats three or four significant digits", () => {
    expect([0, -0, 1, -1.23456, 12.3456, 123.456, 4321.9, 0.00002, 2.4e-7, 3e7].map((x) => short(x))).toEqual([
      "0",
      "0",
      "1.000",
      "−1.235",
      "12.35",
      "123.5",
      "4,322",
      "2.0 × 10⁻⁵",
      "2.4 × 10⁻⁷",
      "3.0 × 10⁷",
    ]);
    expect(["NaN", "Infinity", "-Infinity"].map((x) => short(x as "NaN"))).toEqual(["NaN", "∞", "−∞"]);
  });
  test("fixed never shows a negative zero", () => {
    expect([fixed(-0.0001), fixed(0.5), fixed(-2), fixed("NaN")]).toEqual(["0.000", "0.500", "−2.000", "NaN"]);
  });
  test("exact shows all digits of a float32", () => expect(exact(Math.fround(-0.1))).toBe("−0.100000001"));
  test("approximate shows no more digits than the bound allows", () => {
    expect([approximate(73 / 255, 1 / 510), approximate(0, 1 / 510), approximate(12.34, 0.5)]).toEqual([
      "0.286 ± 0.002",
      "0.000 ± 0.002",
      "12.3 ± 0.5",
    ]);
  });
  test("percent, compact, bytes, count and power", () => {
    expect([percent(0.5), percent(0.0001), percent(0), percent(1)]).toEqual(["50.0%", "< 0.1%", "0.0%", "100.0%"]);
    expect([compact(724608), compact(1.5e9), compact(12), compact(100_000)]).toEqual(["725K", "1.5B", "12", "100K"]);
    expect([bytes(1), bytes(98304), bytes(1023), bytes(2 ** 30)]).toEqual(["1 B", "96.0 KiB", "1023 B", "1.00 GiB"]);
    expect([count(1234567), power(0)]).toEqual(["1,234,567", "0"]);
  });
});

test("visible text marks whitespace and isolates right-to-left text", () => {
  expect(["a b\n", "", "吾輩", "\u05d0 1"].map(visibleText)).toEqual(["a·b⏎", "∅", "吾輩", "\u2068\u05d0·1\u2069"]);
});

describe("colours", () => {
  for (const scheme of ["light", "dark"] as const) {
    test(`shareOf inverts shareColour to 0.6%: ${scheme}`, () => {
      for (let i = 0; i <= 1000; i++)
        expect(Math.abs(fractionOf(fractionColour(i / 1000, scheme), scheme) - i / 1000)).toBeLessThan(0.006);
    });
    test(`signedOf inverts signedColour: ${scheme}`, () => {
      for (const meaning of ["query", "key", "value", "residual", "forward", "plain"] as Meaning[]) {
        for (let i = -100; i <= 100; i++) {
          const back = signedOf(signedColour(i / 10, 10, meaning, scheme), 10, meaning, scheme);
          expect(Math.abs(back - i / 10)).toBeLessThan(0.15);
        }
      }
    });
  }
});

describe("tensors", () => {
  const packed = (header: object, raw: ArrayBuffer) => {
    const text = new TextEncoder().encode(JSON.stringify(header));
    const out = new Uint8Array(4 + text.length + raw.byteLength);
    new DataView(out.buffer).setUint32(0, text.length, true);
    out.set(text, 4);
    out.set(new Uint8Array(raw), 4 + text.length);
    return out.buffer;
  };
  test("decodes float32 after headers of any length", () => {
    for (const pad of ["", "x", "xx", "xxx"]) {
      const got = decode(packed({ shape: [2, 2], dtype: "f32", pad }, new Float32Array([1, -2, 3.5, 0]).buffer));
      expect([...got.data]).toEqual([1, -2, 3.5, 0]);
    }
  });
  test("dequantizes u8", () => {
    const got = decode(packed({ shape: [3], dtype: "u8", scale: 0.5, zero: -1 }, new Uint8Array([0, 2, 255]).buffer));
    expect([...got.data]).toEqual([-1, 0, 126.5]);
  });
  test("decodes half precision", () => {
    expect([0x3c00, 0xc000, 0x7bff, 0x0001, 0x7c00, 0xfc00].map(half)).toEqual([
      1,
      -2,
      65504,
      2 ** -24,
      Infinity,
      -Infinity,
    ]);
    expect(half(0x7e00)).toBeNaN();
  });
  test("rejects a truncated tensor", () => {
    expect(() => decode(packed({ shape: [3], dtype: "u8", scale: 1, zero: 0 }, new Uint8Array(2).buffer))).toThrow(
      /has 2 values, expected 3/,
    );
  });
  test("topIndices includes the selected index", () => {
    const values = [0.1, 0.4, 0, 0.3, 0.2];
    expect(topIndices(values, 3, 1)).toEqual([1, 3, 4]);
    expect(topIndices(values, 3, 2)).toEqual([1, 2, 3]);
    expect(topIndices(values, 9, 7)).toEqual([0, 1, 2, 3, 4]);
  });
  test("decodes base64 and finds the largest value", () => {
    expect([...fromBase64("AAH/")]).toEqual([0, 1, 255]);
    expect(largest([1, -5, 3])).toEqual({ size: 5, value: 3, at: 2 });
  });
});

test("EventReader parses events split at any byte", () => {
  const text =
    'event: token\ndata: {"a": 1}\n\n: still here\n\ndata: one\r\ndata: two\r\n\r\nevent: done\ndata: {}\n\nrest';
  const whole = [
    { event: "token", data: '{"a": 1}' },
    { event: "message", data: "one\ntwo" },
    { event: "done", data: "{}" },
  ];
  for (let size = 1; size < 20; size++) {
    const reader = new EventReader();
    const found = [];
    for (let i = 0; i < text.length; i += size) found.push(...reader.feed(text.slice(i, i + size)));
    expect(found).toEqual(whole);
  }
});
