import { describe, expect, it } from "vitest";
import { gzipSync } from "node:zlib";
import { ReportTransport, canonicalPath, type Report } from "../src/report_transport.js";
import { withDefaults } from "../src/address_bar.js";
import { NotebookTransport, type Port } from "../src/notebook_transport.js";
import { parseAddress, DEFAULT_ADDRESS } from "../src/lib/address.js";
import { ApiError } from "../src/transport.js";

describe("canonicalPath", () => {
  const defaults = { lens: { top: "5" }, tensor: { dtype: "f32" } };
  it("sorts parameters and drops defaults", () => {
    expect(canonicalPath("/v1/traces/t0/views/lens?position=3&top=5", defaults)).toBe(
      canonicalPath("/v1/traces/t0/views/lens?top=5&position=3", defaults),
    );
    expect(canonicalPath("/v1/traces/t0/views/lens?position=3", defaults)).toBe("/v1/traces/t0/views/lens?position=3");
    expect(canonicalPath("/v1/traces/t0/views/lens?top=6&position=3", defaults)).toBe(
      "/v1/traces/t0/views/lens?position=3&top=6",
    );
    expect(canonicalPath("/v1/traces/t0/tensors/embed.out?slice=3%2C%3A&dtype=f32", defaults)).toBe(
      "/v1/traces/t0/tensors/embed.out?slice=3,:",
    );
    expect(canonicalPath("/v1/models/a%2Fb/views/tokens?text=one+two%0A", defaults)).toBe(
      "/v1/models/a/b/views/tokens?text=one two\n",
    );
  });
});

describe("events of a report", () => {
  const responses = {
    "/v1/traces/t0/views/lens?position=3": ["json", { positions: [3] }],
    "/v1/traces/t0/views/lens?position=4": ["json", { positions: [4] }],
    "/v1/traces/t0/views/roles?": ["json", { whole: true }],
  };
  const report: Report = { address: {}, serve: "serve it", rule: "some", defaults: { lens: { top: "5" } }, traces: [] };
  const read = async (path: string) => {
    const found: unknown[] = [];
    for await (const one of new ReportTransport(report, gzipSync(JSON.stringify(responses)).toString("base64")).events(
      path,
      undefined,
    ))
      found.push(one);
    return found;
  };
  it("yields complete views, one for each position", async () => {
    expect(await read("/v1/traces/t0/views/lens?top=5&position=4%2C3&stream=true")).toEqual([
      { event: "done", data: { positions: [4] } },
      { event: "done", data: { positions: [3] } },
    ]);
    expect(await read("/v1/traces/t0/views/roles?stream=true")).toEqual([{ event: "done", data: { whole: true } }]);
  });
  it("throws an error with the serve command if a response is not stored", async () =>
    await expect(read("/v1/traces/t0/views/lens?position=9&stream=true")).rejects.toThrow("serve it"));
});

describe("withDefaults", () => {
  const defaults = { text: "other", layer: 2, query: 7, view: "cell" };
  const bar = (current: string) =>
    withDefaults({ read: () => current, write: () => undefined, listen: () => () => undefined }, defaults);
  it("returns the defaults for an empty address", () =>
    expect(parseAddress(bar("").read())).toEqual({ ...DEFAULT_ADDRESS, ...defaults }));
  it("keeps the default text if the address has only a view", () =>
    expect(parseAddress(bar("#/grid").read())).toMatchObject({ ...defaults, view: "grid" }));
  it("uses the address if its text is the default text", () =>
    expect(parseAddress(bar("#/grid?text=other&layer=1").read()).query).toBe(DEFAULT_ADDRESS.query));
});

describe("NotebookTransport", () => {
  const transport = (respond: (message: { id: number }) => [object, DataView[]]) => {
    let handler: (content: unknown, buffers: DataView[]) => void = () => undefined;
    const port: Port = {
      send: (message) => queueMicrotask(() => handler(...respond(message as { id: number }))),
      on: (_, listen) => void (handler = listen),
    };
    return new NotebookTransport(port);
  };
  const buffers = (value: unknown) => [new DataView(new TextEncoder().encode(JSON.stringify(value)).buffer)];
  it("routes each response to its request", async () => {
    const notebook = transport(({ id }) => [{ id, done: true }, buffers({ id })]);
    expect(await Promise.all([notebook.json("/a"), notebook.json("/b")])).toEqual([{ id: 0 }, { id: 1 }]);
  });
  it("throws the error of a response", async () => {
    const notebook = transport(({ id }) => [
      { id, done: true, error: { message: "no such layer", param: "layer" } },
      [],
    ]);
    await expect(notebook.json("/a")).rejects.toThrow("no such layer");
    await expect(notebook.post("/v1/traces", {})).rejects.toBeInstanceOf(ApiError);
  });
});
