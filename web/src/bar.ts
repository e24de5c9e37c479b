/** Where the address stands: the window's bar, one that begins at a report's place, or none. */
import { read, START, write, type Place } from "./lib/address.js";

/** The address bar, or what stands for it where the page is a guest. */
export interface Bar {
  read(): string;
  write(address: string, push: boolean): void;
  listen(moved: () => void): () => void;
}

export const windowBar: Bar = {
  read: () => location.hash,
  write: (address, push) => history[push ? "pushState" : "replaceState"](null, "", address),
  listen(moved) {
    addEventListener("popstate", moved);
    addEventListener("hashchange", moved);
    return () => {
      removeEventListener("popstate", moved);
      removeEventListener("hashchange", moved);
    };
  },
};

/** An address bar that begins at a place: what an address without this text leaves open is as it is there. */
export function beginningAt(bar: Bar, place: Partial<Place>): Bar {
  const own = write({ ...START, ...place });
  const filled = (address: string): string => {
    if (address.length < 2) return own;
    if (read(address).text === place.text) return address;
    const [where = "", given = ""] = address.split(/\?(.*)/s),
      all = new URLSearchParams(own.split(/\?(.*)/s)[1] ?? "");
    for (const [name, value] of new URLSearchParams(given)) all.set(name, value);
    return write(read(`${where}?${all.toString()}`));
  };
  return { ...bar, read: () => filled(bar.read()) };
}

/** No address bar: where the page is a guest. */
export function noBar(place: Partial<Place>): Bar {
  let now = write({ ...START, ...place });
  return { read: () => now, write: (address) => void (now = address), listen: () => () => undefined };
}
