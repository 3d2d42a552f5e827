// What the page knows of the connection to one terminal session, and what follows from how a WebSocket closed. Pure.

export type LinkState =
  /** Waits for its size, or for the sandbox to be made. */
  | { name: "idle" }
  | { name: "opening" }
  | { name: "connecting" }
  | { name: "live" }
  /** It broke and will be tried again by itself. */
  | { name: "reconnecting"; attempt: number; reason: string }
  /** The sandbox does not run; attaching would wake it, so somebody has to say so. */
  | { name: "asleep" }
  /** The shell ended. `null`: while nobody looked. */
  | { name: "ended"; exitCode: number | null }
  | { name: "failed"; message: string; requestId?: string | undefined };

/** RFC 6455 and the API's own words for it. */
const NORMAL = 1000;
const SERVER_ERROR = 1011;
const RESTART = 1012;

export type Closing =
  | { kind: "ended"; exitCode: number | null }
  | { kind: "failed"; message: string }
  /** `calm`: the other side said that it goes away for now, and why. */
  | { kind: "broken"; reason: string; calm: boolean };

/** What a close frame of the API means. */
export function closing(code: number, reason: string): Closing {
  if (code === NORMAL) return { kind: "ended", exitCode: exitCodeIn(reason) };
  if (code === RESTART) return { kind: "broken", reason: reason === "" ? "The server restarts" : reason, calm: true };
  if (code === SERVER_ERROR) return failure(reason);
  return { kind: "broken", reason: "The connection broke", calm: false };
}

/** Codes of a machine that went away in the midst of it: the session may still be there, or be there again. */
const PASSING = ["AGENT_UNREACHABLE", "MACHINE_FAILED", "SANDBOX_BUSY", "SANDBOX_INTERRUPTED", "SANDBOX_STARTING"];

/** The reason is `CODE: sentence`. */
function failure(reason: string): Closing {
  const [, code = "", sentence = ""] = /^([A-Z_]+): (.*)$/s.exec(reason) ?? [];
  if (PASSING.includes(code)) return { kind: "broken", reason: sentence, calm: true };
  return { kind: "failed", message: sentence === "" ? reason || "The terminal failed" : sentence };
}

function exitCodeIn(reason: string): number | null {
  try {
    const parsed: unknown = JSON.parse(reason);
    const code = typeof parsed === "object" && parsed !== null && "exit_code" in parsed ? parsed.exit_code : null;
    return typeof code === "number" ? code : null;
  } catch {
    return null;
  }
}

const RETRY_MIN_MS = 250;
const RETRY_MAX_MS = 5_000;
/** A sandbox that is being paused says so to its terminals first and to everybody else a moment later. */
const RETRY_CALM_MS = 800;

/** How long to wait before try number `attempt`, from 0. */
export function retryMs(attempt: number, calm: boolean): number {
  const wait = Math.min(RETRY_MAX_MS, RETRY_MIN_MS * 2 ** attempt);
  return calm && attempt === 0 ? RETRY_CALM_MS : wait;
}

/** States of a sandbox in which a terminal can be reached without waking it. */
export function isAwake(sandboxState: string): boolean {
  return sandboxState === "running";
}
