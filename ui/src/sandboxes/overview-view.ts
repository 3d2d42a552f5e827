// Facts of a sandbox's overview as words. Pure.
import type { CoveEvent, Sandbox } from "../api/client";
import { duration, milliseconds } from "../lib/format";

/** How it came to run. */
export function bootText(path: string | null | undefined): string {
  const texts: Record<string, string> = {
    cold: "booted",
    warm: "from its template's prepared machine",
    snapshot: "from captured memory",
  };
  return path == null ? "" : (texts[path] ?? path);
}

export interface Session {
  /** What is going to happen, or why nothing is. */
  text: string;
  /** What is left, from 1 to 0; `null` when no clock runs. */
  share: number | null;
  /** Under a minute is left. */
  soon: boolean;
}

/** The session's clock; `elapsedMs` is how old the record is. */
export function sessionOf(sandbox: Sandbox, elapsedMs: number): Session {
  const still = (text: string): Session => ({ text, share: null, soon: false });
  if (sandbox.state !== "running") return still(stateText(sandbox));
  if (sandbox.always_on) return still("Always on: no timeout is enforced.");
  if (sandbox.timeout_remaining_ms == null) return still("No timeout runs.");
  const left = Math.max(0, sandbox.timeout_remaining_ms - elapsedMs);
  const verb = sandbox.persistent ? "Pauses" : "Is destroyed";
  return {
    text: left === 0 ? `${verb} now.` : `${verb} in ${duration(left / 1000)}.`,
    share: Math.min(1, left / (sandbox.timeout_sec * 1000)),
    soon: left < 60_000,
  };
}

function stateText(sandbox: Sandbox): string {
  if (sandbox.state === "paused") return "Paused: nothing runs, disk and memory are kept. Any use wakes it.";
  return "Its session does not run.";
}

/** What happened, as a line. */
export function eventText(event: CoveEvent): string {
  const text = (key: string) => (typeof event[key] === "string" ? (event[key] as string) : "");
  const number = (key: string) => (typeof event[key] === "number" ? (event[key] as number) : null);
  switch (event.type) {
    case "sandbox.exec.started":
      return `Runs ${text("command")}`;
    case "sandbox.exec.completed":
      return `A command ended with ${number("exit_code") ?? "no code"} after ${milliseconds(number("duration_ms") ?? 0)}`;
    case "sandbox.snapshot.ready":
      return "A snapshot was taken";
    case "sandbox.port.opened":
      return `Port ${number("port") ?? ""} opened`;
    case "sandbox.port.closed":
      return `Port ${number("port") ?? ""} closed`;
    case "sandbox.preview.ready":
      return `Port ${number("port") ?? ""} is exposed`;
    case "sandbox.error":
      return `Failed: ${text("error")}`;
    case "sandbox.cold_boot":
      return `Booted from its disk: ${text("reason")}`;
    default: {
      const words = event.type.replace(/^sandbox\./, "").replaceAll(/[._]/g, " ");
      return words.charAt(0).toUpperCase() + words.slice(1);
    }
  }
}
