import { describe, expect, it } from "vitest";
import { gzipSync } from "node:zlib";
import { Baked, keyOf, type Report } from "../src/baked.js";
import { beginningAt } from "../src/bar.js";
import { Channel, type Port } from "../src/channel.js";
import { read, START } from "../src/lib/address.js";
import { Refused } from "../src/transport.js";

describe("what is asked of a report", () => {
  const usual = { lens: { top: "5" }, tensor: { dtype: "f32" } };
  it("is told apart by what differs from the usual, in any order", () => {
    expect(keyOf("/v1/traces/t0/views/lens?position=3&top=5", usual)).toBe(
      keyOf("/v1/traces/t0/views/lens?top=5&position=3", usual),
    );
    expect(keyOf("/v1/traces/t0/views/lens?position=3", usual)).toBe("/v1/traces/t0/views/lens?position=3");
    expect(keyOf("/v1/traces/t0/views/lens?top=6&position=3", usual)).toBe("/v1/traces/t0/views/lens?position=3&top=6");
    expect(keyOf("/v1/traces/t0/tensors/embed.out?slice=3%2C%3A&dtype=f32", usual)).toBe(
      "/v1/traces/t0/tensors/embed.out?slice=3,:",
    );
    expect(keyOf("/v1/models/a%2Fb/views/tokens?text=one+two%0A", usual)).toBe(
      "/v1/models/a/b/views/tokens?text=one two\n",
    );
  });
});

describe("what comes row by row", () => {
  const answers = {
    "/v1/traces/t0/views/lens?position=3": ["json", { positions: [3] }],
    "/v1/traces/t0/views/lens?position=4": ["json", { positions: [4] }],
    "/v1/traces/t0/views/roles?": ["json", { whole: true }],
  };
  const report: Report = { place: {}, serve: "serve it", rule: "some", defaults: { lens: { top: "5" } }, traces: [] };
  const heard = async (path: string) => {
    const found: unknown[] = [];
    for await (const one of new Baked(report, gzipSync(JSON.stringify(answers)).toString("base64")).events(
      path,
      undefined,
    ))
      found.push(one);
    return found;
  };
  it("is there at once in a report, of several positions one after the other", async () => {
    expect(await heard("/v1/traces/t0/views/lens?top=5&position=4%2C3&stream=true")).toEqual([
      { event: "done", data: { positions: [4] } },
      { event: "done", data: { positions: [3] } },
    ]);
    expect(await heard("/v1/traces/t0/views/roles?stream=true")).toEqual([{ event: "done", data: { whole: true } }]);
  });
  it("says what is not in it", async () =>
    await expect(heard("/v1/traces/t0/views/lens?position=9&stream=true")).rejects.toThrow("serve it"));
});

describe("a report's address", () => {
  const place = { text: "other", layer: 2, query: 7, view: "cell" };
  const bar = (address: string) =>
    beginningAt({ read: () => address, write: () => undefined, listen: () => () => undefined }, place);
  it("begins where the report begins", () => expect(read(bar("").read())).toEqual({ ...START, ...place }));
  it("keeps the report's text where a link names only a view", () =>
    expect(read(bar("#/grid").read())).toMatchObject({ ...place, view: "grid" }));
  it("follows a whole address", () => expect(read(bar("#/grid?text=other&layer=1").read()).query).toBe(START.query));
});

describe("a notebook's channel", () => {
  const talking = (answer: (message: { id: number }) => [object, DataView[]]) => {
    let heard: (content: unknown, buffers: DataView[]) => void = () => undefined;
    const port: Port = {
      send: (message) => queueMicrotask(() => heard(...answer(message as { id: number }))),
      on: (_, listen) => void (heard = listen),
    };
    return new Channel(port);
  };
  const said = (value: unknown) => [new DataView(new TextEncoder().encode(JSON.stringify(value)).buffer)];
  it("gives an answer to whoever asked", async () => {
    const channel = talking(({ id }) => [{ id, done: true }, said({ id })]);
    expect(await Promise.all([channel.json("/a"), channel.json("/b")])).toEqual([{ id: 0 }, { id: 1 }]);
  });
  it("says why there is none", async () => {
    const channel = talking(({ id }) => [{ id, done: true, error: { message: "no such layer", param: "layer" } }, []]);
    await expect(channel.json("/a")).rejects.toThrow("no such layer");
    await expect(channel.post("/v1/traces", {})).rejects.toBeInstanceOf(Refused);
  });
});
