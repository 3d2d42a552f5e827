// Wire data to text and colour; pure.
import type { Sandbox } from "../api/client";
import { age, megabytes } from "../lib/format";

export type Tone = "good" | "busy" | "quiet" | "bad";

export interface SandboxView {
  id: string;
  title: string;
  state: string;
  tone: Tone;
  template: string;
  shape: string;
  age: string;
  problem: string | null;
}

const TONES: Record<string, Tone> = { running: "good", paused: "quiet", destroyed: "quiet", error: "bad" };

/** A sandbox as its row shows it. */
export function sandboxView(sandbox: Sandbox, now: Date): SandboxView {
  const { cpu_count, memory_mb, disk_size_mb } = sandbox;
  const problem = (sandbox.metadata as Record<string, unknown>).last_error;
  return {
    id: sandbox.id,
    title: sandbox.name ?? sandbox.id,
    state: sandbox.state,
    tone: TONES[sandbox.state] ?? "busy",
    template: sandbox.template_id,
    shape: `${cpu_count} vCPU · ${megabytes(memory_mb)} · ${megabytes(disk_size_mb)} disk`,
    age: age(new Date(sandbox.created_at), now),
    problem: typeof problem === "string" ? problem : null,
  };
}
