// Addresses in a preview pane: what was typed, and the steps back and forward. Pure. A page of another origin tells nobody
// where it went by itself, so a history holds only what was opened from the pane's own bar.

/** A place in a sandbox's web servers. */
export interface Place {
  /** The port in the sandbox. */
  port: number;
  /** Begins with a slash; with query and fragment. */
  path: string;
}

export interface KnownPreview {
  port: number;
  /** Where the host serves it. */
  url: string;
}

export type Typed = { kind: "place"; place: Place } | { kind: "web"; url: string } | { kind: "wrong"; why: string };

/** Names by which programs in a sandbox call themselves: what one copies from their output. */
const OWN_NAMES = ["localhost", "127.0.0.1", "0.0.0.0", "[::1]", "[::]"];

const PORT_MAX = 65_535;

/** What somebody typed: a path, `:8080/path`, `localhost:8080`, a preview's own address, or a page elsewhere. */
export function typedPlace(typed: string, current: Place, known: readonly KnownPreview[]): Typed {
  const text = typed.trim();
  if (text === "" || text.startsWith("/")) return { kind: "place", place: { ...current, path: text || "/" } };
  if (text.startsWith("?") || text.startsWith("#")) return { kind: "place", place: { ...current, path: `/${text}` } };
  const port = /^:?(\d{2,5})(?=$|[/?#])(.*)$/.exec(text);
  if (port !== null) return placeAt(Number(port[1]), port[2] ?? "");
  const withScheme = /^https?:\/\//i.test(text) ? text : hostLike(text) ? `http://${text}` : null;
  if (withScheme === null) return { kind: "place", place: { ...current, path: `/${text}` } };
  return inUrl(withScheme, known);
}

/** `name:port` or one of the sandbox's own names. Anything else without a scheme is a path. */
function hostLike(text: string): boolean {
  const host = text.split(/[/?#]/)[0] ?? "";
  return /:\d+$/.test(host) || OWN_NAMES.includes(host);
}

function inUrl(text: string, known: readonly KnownPreview[]): Typed {
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    return { kind: "wrong", why: "This is no address." };
  }
  const path = url.pathname + url.search + url.hash;
  const own = known.find((preview) => new URL(preview.url).host === url.host);
  if (own !== undefined) return { kind: "place", place: { port: own.port, path } };
  if (OWN_NAMES.includes(url.hostname)) return placeAt(Number(url.port || 80), path);
  return { kind: "web", url: url.href };
}

function placeAt(port: number, rest: string): Typed {
  if (port < 1 || port > PORT_MAX) return { kind: "wrong", why: `A port is a number from 1 to ${PORT_MAX}.` };
  return { kind: "place", place: { port, path: rest.startsWith("/") ? rest : `/${rest}` } };
}

/** The address that a browser loads. */
export function addressOf(preview: KnownPreview, path: string, token: string | null = null): string {
  const url = new URL(path, preview.url);
  // `//host` would lead elsewhere.
  const safe = url.host === new URL(preview.url).host ? url : new URL("/", preview.url);
  if (token !== null) safe.searchParams.set("mt", token);
  return safe.href;
}

export interface History {
  places: readonly Place[];
  at: number;
}

/** Steps that are kept. */
const STEPS_MAX = 100;

export function begin(place: Place): History {
  return { places: [place], at: 0 };
}

export function current(history: History): Place {
  return history.places[history.at] ?? { port: 80, path: "/" };
}

/** A new place; what lay ahead is forgotten. The same place again is no step. */
export function visit(history: History, place: Place): History {
  const now = current(history);
  if (now.port === place.port && now.path === place.path) return history;
  const places = [...history.places.slice(0, history.at + 1), place].slice(-STEPS_MAX);
  return { places, at: places.length - 1 };
}

export function canGo(history: History, steps: number): boolean {
  return history.places[history.at + steps] !== undefined;
}

export function go(history: History, steps: number): History {
  return canGo(history, steps) ? { ...history, at: history.at + steps } : history;
}
