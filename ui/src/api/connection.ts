// Where the API is and what opens it. The only file that imports @tauri-apps.
import { invoke, isTauri } from "@tauri-apps/api/core";

export interface Connection {
  base_url: string;
  token: string;
}

/** There is nothing to connect with; the page says how to get it. */
export class NoConnection extends Error {
  constructor(
    readonly reason: "no_token" | "host",
    message: string,
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
      throw new NoConnection("host", String(error));
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
