// What the page says about processes and listeners, and what a form's text means. Pure.
import type { Listener, ProcessRecord } from "../api/client";

export type ProcessTone = "ok" | "neutral" | "danger" | "warn";

/** Names as signal(7) has them, those that people send. */
export const SIGNALS: { name: string; number: number; means: string }[] = [
  { name: "SIGINT", number: 2, means: "Interrupt, as Ctrl+C does" },
  { name: "SIGTERM", number: 15, means: "Ask it to end" },
  { name: "SIGKILL", number: 9, means: "End it at once" },
  { name: "SIGHUP", number: 1, means: "Hang up; many programs read their settings anew" },
  { name: "SIGQUIT", number: 3, means: "End with a dump" },
  { name: "SIGUSR1", number: 10, means: "As the program likes" },
  { name: "SIGUSR2", number: 12, means: "As the program likes" },
  { name: "SIGSTOP", number: 19, means: "Stand still" },
  { name: "SIGCONT", number: 18, means: "Go on" },
];

export const TIMED_OUT = 124;

export function isRunning(process: ProcessRecord): boolean {
  return process.status === "running";
}

/** The process's end, or that it runs, in a few words. */
export function statusOf(process: ProcessRecord): { word: string; tone: ProcessTone } {
  if (isRunning(process)) return { word: "Running", tone: "ok" };
  if (process.signal != null) return { word: `Killed by ${signalName(process.signal)}`, tone: "warn" };
  if (process.exit_code === 0) return { word: "Exited 0", tone: "neutral" };
  if (process.exit_code === TIMED_OUT) return { word: "Timed out (124)", tone: "danger" };
  if (process.exit_code == null) return { word: "Ended", tone: "neutral" };
  return { word: `Exited ${process.exit_code}`, tone: "danger" };
}

export function signalName(number: number): string {
  return SIGNALS.find((signal) => signal.number === number)?.name ?? `signal ${number}`;
}

/** Its name, or else its command. */
export function processTitle(process: ProcessRecord): string {
  return process.name ?? process.command;
}

/** Those that run first, then by start, the newest first. */
export function ordered(processes: readonly ProcessRecord[]): ProcessRecord[] {
  return [...processes].sort(
    (one, other) =>
      Number(isRunning(other)) - Number(isRunning(one)) ||
      (other.started_at ?? "").localeCompare(one.started_at ?? "") ||
      other.pid - one.pid,
  );
}

/** Where a listener can be reached from: other machines do not count, a sandbox has no network. */
export function listensOn({ address, port }: Listener): string {
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}

/** One `NAME=value` a line; empty lines and comments do not count. Fails with the line that is wrong. */
export function parseEnv(text: string): Record<string, string> {
  const env: Record<string, string> = {};
  text.split("\n").forEach((raw, at) => {
    const line = raw.trim().replace(/^export\s+/, "");
    if (line === "" || line.startsWith("#")) return;
    const equals = line.indexOf("=");
    const name = line.slice(0, equals).trim();
    if (equals < 1 || !/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) throw new Error(`Line ${at + 1} is not NAME=value`);
    env[name] = unquoted(line.slice(equals + 1).trim());
  });
  return env;
}

function unquoted(value: string): string {
  const [, , inner] = /^(["'])(.*)\1$/s.exec(value) ?? [];
  return inner ?? value;
}
