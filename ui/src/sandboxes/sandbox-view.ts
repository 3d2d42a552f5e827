// Wire data to text and colour; pure.
import type { Sandbox } from "../api/client";
import { age, megabytes } from "../lib/format";

export type Tone = "good" | "busy" | "quiet" | "bad";

const TONES: Record<string, Tone> = { running: "good", paused: "quiet", destroyed: "quiet", error: "bad" };

/** The colour of a state; those that pass by themselves are `busy`. */
export function toneOf(state: string): Tone {
  return TONES[state] ?? "busy";
}

/** A state as a word: `Running`. */
export function stateWord(state: string): string {
  return state.charAt(0).toUpperCase() + state.slice(1);
}

/** What people call it. */
export function titleOf(sandbox: Pick<Sandbox, "id" | "name">): string {
  return sandbox.name ?? sandbox.id;
}

/** `1 vCPU · 512 MB · 2 GB`, with the named size in front if it has one. */
export function shapeOf(sandbox: Pick<Sandbox, "cpu_count" | "memory_mb" | "disk_size_mb">): string {
  const { cpu_count, memory_mb, disk_size_mb } = sandbox;
  return `${cpu_count} vCPU · ${megabytes(memory_mb)} · ${megabytes(disk_size_mb)}`;
}

/** Why it failed, in state `error`. */
export function lastError(sandbox: Pick<Sandbox, "metadata">): string | null {
  const reason = (sandbox.metadata as Record<string, unknown>).last_error;
  return typeof reason === "string" && reason !== "" ? reason : null;
}

/** Since when its session runs; `null` when none does. */
export function sessionAge(sandbox: Pick<Sandbox, "state" | "started_at">, now: Date): string | null {
  return sandbox.state === "running" && sandbox.started_at ? age(new Date(sandbox.started_at), now) : null;
}

/** Seconds that its session has left now, `ageSeconds` after its record came; `null` when no end is set. */
export function remainingSeconds(
  sandbox: Pick<Sandbox, "state" | "timeout_remaining_ms">,
  ageSeconds: number,
): number | null {
  const left = sandbox.timeout_remaining_ms;
  if (sandbox.state !== "running" || left === null || left === undefined) return null;
  return Math.max(0, left / 1000 - Math.max(0, ageSeconds));
}
