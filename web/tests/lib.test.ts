import { describe, expect, test } from "vitest";
import { EventReader } from "../src/lib/events.js";
import { big, bytes, count, exact, fixed, percent, power, short } from "../src/lib/number.js";
import { shareColour, shareOf, signedColour, signedOf, type Meaning } from "../src/lib/colour.js";
import { decode, fromBase64, half, largest } from "../src/lib/tensor.js";

describe("numbers", () => {
  test("short ones", () => {
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
  test("in columns, never a minus before nothing", () => {
    expect([fixed(-0.0001), fixed(0.5), fixed(-2), fixed("NaN")]).toEqual(["0.000", "0.500", "−2.000", "NaN"]);
  });
  test("all digits of a float32", () => expect(exact(Math.fround(-0.1))).toBe("−0.100000001"));
  test("shares, sizes", () => {
    expect([percent(0.5), percent(0.0001), percent(0), percent(1)]).toEqual(["50.0%", "< 0.1%", "0.0%", "100.0%"]);
    expect([big(724608), big(1.5e9), big(12), big(100_000)]).toEqual(["725K", "1.5B", "12", "100K"]);
    expect([bytes(1), bytes(98304), bytes(1023), bytes(2 ** 30)]).toEqual(["1 B", "96.0 KiB", "1023 B", "1.00 GiB"]);
    expect([count(1234567), power(0)]).toEqual(["1,234,567", "0"]);
  });
});

describe("colours", () => {
  for (const scheme of ["light", "dark"] as const) {
    test(`a share's colour tells it to half a percent: ${scheme}`, () => {
      for (let i = 0; i <= 1000; i++)
        expect(Math.abs(shareOf(shareColour(i / 1000, scheme), scheme) - i / 1000)).toBeLessThan(0.006);
    });
    test(`a signed number's colour tells it, sign and all: ${scheme}`, () => {
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
  test("float32, whatever the header's length", () => {
    for (const pad of ["", "x", "xx", "xxx"]) {
      const got = decode(packed({ shape: [2, 2], dtype: "f32", pad }, new Float32Array([1, -2, 3.5, 0]).buffer));
      expect([...got.data]).toEqual([1, -2, 3.5, 0]);
    }
  });
  test("bytes", () => {
    const got = decode(packed({ shape: [3], dtype: "u8", scale: 0.5, zero: -1 }, new Uint8Array([0, 2, 255]).buffer));
    expect([...got.data]).toEqual([-1, 0, 126.5]);
  });
  test("half precision", () => {
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
  test("one that is cut short is refused", () => {
    expect(() => decode(packed({ shape: [3], dtype: "u8", scale: 1, zero: 0 }, new Uint8Array(2).buffer))).toThrow(
      /3 numbers came with 2/,
    );
  });
  test("base64 and the loudest", () => {
    expect([...fromBase64("AAH/")]).toEqual([0, 1, 255]);
    expect(largest([1, -5, 3])).toEqual({ size: 5, value: 3, at: 2 });
  });
});

test("events, wherever they are cut", () => {
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
