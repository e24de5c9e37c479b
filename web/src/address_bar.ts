/** Where the address is stored: the browser's address bar, or memory if the page is embedded. */
import { parseAddress, DEFAULT_ADDRESS, formatAddress, type Address } from "./lib/address.js";

/** Storage of the current address. */
export interface AddressBar {
  read(): string;
  write(address: string, push: boolean): void;
  listen(moved: () => void): () => void;
}

export const browserAddressBar: AddressBar = {
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

/** An address bar with defaults: values that an address leaves open are taken from `defaults`. */
export function withDefaults(bar: AddressBar, defaults: Partial<Address>): AddressBar {
  const own = formatAddress({ ...DEFAULT_ADDRESS, ...defaults });
  const filled = (address: string): string => {
    if (address.length < 2) return own;
    if (parseAddress(address).text === defaults.text) return address;
    const [where = "", given = ""] = address.split(/\?(.*)/s),
      all = new URLSearchParams(own.split(/\?(.*)/s)[1] ?? "");
    for (const [name, value] of new URLSearchParams(given)) all.set(name, value);
    return formatAddress(parseAddress(`${where}?${all.toString()}`));
  };
  return { ...bar, read: () => filled(bar.read()) };
}

/** An address in memory, for an embedded page. */
export function memoryAddressBar(initial: Partial<Address>): AddressBar {
  let now = formatAddress({ ...DEFAULT_ADDRESS, ...initial });
  return { read: () => now, write: (address) => void (now = address), listen: () => () => undefined };
}
