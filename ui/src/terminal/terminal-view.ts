// What the page says about a terminal: titles, notices, and where a link in its output leads. Pure.
import type { LinkState } from "./link-state";

export interface Notice {
  tone: "info" | "warn" | "danger";
  text: string;
  /** More, in smaller words. */
  more?: string | undefined;
  /** What can be done: a new shell, another try at once, or waking the sandbox. */
  offer?: "restart" | "retry" | "wake";
  /** Something is going on. */
  busy?: boolean;
}

/** The line over a pane; `null` while all is as it should be. `sandboxState` is what the sandbox is in now. */
export function noticeOf(state: LinkState, sandboxState: string): Notice | null {
  switch (state.name) {
    case "live":
      return null;
    case "idle":
      return sandboxState === "running" ? null : asleep(sandboxState);
    case "opening":
      return { tone: "info", text: "Starting a shell…", busy: true };
    case "connecting":
      return { tone: "info", text: "Connecting…", busy: true };
    case "reconnecting":
      return { tone: "warn", text: "Reconnecting…", more: state.reason, offer: "retry", busy: true };
    case "asleep":
      return asleep(sandboxState);
    case "ended":
      return { tone: "info", ...endOf(state.exitCode), offer: "restart" };
    case "failed": {
      const more = state.requestId === undefined ? undefined : `Request ${state.requestId}`;
      return { tone: "danger", text: state.message, more, offer: "restart" };
    }
  }
}

function asleep(sandboxState: string): Notice {
  const text: Record<string, string> = {
    paused: "The sandbox is paused. This terminal goes on where it was.",
    pausing: "The sandbox is being paused…",
    snapshotting: "The sandbox is being saved…",
    resuming: "The sandbox resumes…",
    creating: "The sandbox is being made…",
    error: "The sandbox failed.",
    destroying: "The sandbox is being destroyed…",
    destroyed: "The sandbox is gone.",
  };
  const offered = sandboxState === "paused" || sandboxState === "error";
  return {
    tone: sandboxState === "error" ? "danger" : "info",
    text: text[sandboxState] ?? "The sandbox does not run.",
    ...(offered ? { offer: "wake" as const } : {}),
    busy: /ing$/.test(sandboxState) && sandboxState !== "running",
  };
}

function endOf(exitCode: number | null): { text: string; more?: string } {
  if (exitCode === null) return { text: "This shell ended while nobody looked at it." };
  if (exitCode > 128 && exitCode < 128 + 65) {
    return { text: `The shell ended with exit code ${exitCode}.`, more: `Killed by signal ${exitCode - 128}` };
  }
  return { text: `The shell ended with exit code ${exitCode}.` };
}

/** A tab's name: the user's own, the program's title, or its place. */
export function tabTitle(name: string | null, title: string, place: number): string {
  return name ?? (title.trim() === "" ? `Terminal ${place}` : title.trim());
}

/** A link to the sandbox's own loopback is a port that a preview can show; everything else is opened outside. */
export function linkTarget(
  uri: string,
): { kind: "port"; port: number; path: string } | { kind: "outside"; url: string } | null {
  let url: URL;
  try {
    url = new URL(uri);
  } catch {
    return null;
  }
  if (url.protocol !== "http:" && url.protocol !== "https:") return null;
  if (/^(localhost|127\.\d+\.\d+\.\d+|0\.0\.0\.0|\[::1?\])$/.test(url.hostname)) {
    const port = url.port === "" ? (url.protocol === "https:" ? 443 : 80) : Number(url.port);
    return { kind: "port", port, path: url.pathname + url.search + url.hash };
  }
  return { kind: "outside", url: url.href };
}
