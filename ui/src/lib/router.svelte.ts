// The page's place, kept in the address behind `#`: `#/sandboxes`, `#/sandboxes/<id>/<tab>/…`, `#/templates`, `#/disk`,
// `#/settings`. Parsing and writing are pure; Router only follows the browser.

export type Route =
  | { name: "sandboxes" }
  | { name: "sandbox"; id: string; tab: string; rest: string[] }
  | { name: "templates"; rest: string[] }
  | { name: "disk" }
  | { name: "settings" };

export const FIRST_TAB = "overview";

/** What an address means; anything unknown is the list of sandboxes. */
export function parseRoute(hash: string): Route {
  const parts = hash
    .replace(/^#?\/?/, "")
    .split("/")
    .filter((part) => part !== "")
    .map(decode);
  const [head, ...rest] = parts;
  if (head === "sandboxes" && rest[0] !== undefined) {
    const [id, tab = FIRST_TAB, ...deeper] = rest;
    return { name: "sandbox", id, tab, rest: deeper };
  }
  if (head === "templates") return { name: "templates", rest };
  if (head === "disk" || head === "settings") return { name: head };
  return { name: "sandboxes" };
}

/** The address of a place. */
export function hrefOf(...parts: string[]): string {
  return `#/${parts.map(encodeURIComponent).join("/")}`;
}

export function hrefOfSandbox(id: string, tab: string = FIRST_TAB, ...rest: string[]): string {
  return hrefOf("sandboxes", id, tab, ...rest);
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

export class Router {
  route = $state.raw<Route>(parseRoute(location.hash));

  constructor() {
    addEventListener("hashchange", () => (this.route = parseRoute(location.hash)));
  }

  /** Goes to an address made by `hrefOf`; `replace` leaves no step in the history. */
  go(href: string, { replace = false }: { replace?: boolean } = {}): void {
    if (href === location.hash) return;
    if (replace) history.replaceState(null, "", href);
    else history.pushState(null, "", href);
    this.route = parseRoute(href);
  }

  toSandboxes(): void {
    this.go(hrefOf("sandboxes"));
  }

  toSandbox(id: string, tab?: string, ...rest: string[]): void {
    this.go(hrefOfSandbox(id, tab, ...rest));
  }

  /** The sandbox that is open, if one is. */
  get sandboxId(): string | null {
    return this.route.name === "sandbox" ? this.route.id : null;
  }
}
