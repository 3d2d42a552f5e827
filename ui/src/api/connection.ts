// Where the API is and what opens it. The only file that imports @tauri-apps.
import { invoke, isTauri } from "@tauri-apps/api/core";

export interface Connection {
  base_url: string;
  token: string;
}

/** Something that this computer lacks for a server, and what to do about it. */
export interface FailedCheck {
  name: string;
  detail: string;
  advice?: string;
}

/** There is nothing to connect with; the page says how to get it. */
export class NoConnection extends Error {
  constructor(
    readonly reason: "no_token" | "host",
    message: string,
    readonly checks: FailedCheck[] = [],
  ) {
    super(message);
    this.name = "NoConnection";
  }
}

const TOKEN_KEY = "cove.token";

/** The page runs in Cove's own window. */
export function inWindow(): boolean {
  return isTauri();
}

/**
 * In the window the host says it in one command. In a browser the page comes from the API itself, and the address that
 * `cove serve` printed carries the token behind `#token=`, which never leaves the browser.
 */
export async function findConnection(): Promise<Connection> {
  if (isTauri()) {
    return invoke<Connection>("connection").catch((error: unknown) => {
      const { message, checks } = error as { message?: string; checks?: FailedCheck[] };
      throw new NoConnection("host", message ?? String(error), checks);
    });
  }
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given !== null) {
    sessionStorage.setItem(TOKEN_KEY, given);
    history.replaceState(null, "", location.pathname);
  }
  const token = sessionStorage.getItem(TOKEN_KEY);
  if (token === null) {
    throw new NoConnection("no_token", "This address has no token. Open the one that `cove serve` printed.");
  }
  return { base_url: `${location.origin}/api/v1`, token };
}

/**
 * In the window: makes sure that there is a server, starting one where the one that was found is gone, and changes the
 * connection in place. What is open stays open.
 */
export async function renew(connection: Connection): Promise<void> {
  Object.assign(connection, await findConnection());
}

/** Opens a web page outside of Cove: in the user's browser, or from a browser in another tab. */
export async function openExternal(url: string): Promise<void> {
  if (isTauri()) {
    await invoke("open_external", { url }).catch((error: unknown) => {
      throw new Error(String(error));
    });
  } else {
    window.open(url, "_blank", "noopener,noreferrer");
  }
}

/** What the window's host tells the page. */
export type HostMessage =
  | { kind: "go"; place: string }
  | { kind: "new" }
  | { kind: "downloaded"; path: string | null; success: boolean }
  | { kind: "quitting"; done: number; total: number };

/** Hears the host until the function that it gives is called. Never called in a browser. */
export function onHost(heard: (message: HostMessage) => void): () => void {
  const listener = (event: Event) => heard((event as CustomEvent<HostMessage>).detail);
  addEventListener("cove-host", listener);
  return () => removeEventListener("cove-host", listener);
}
