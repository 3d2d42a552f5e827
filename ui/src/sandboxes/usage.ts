// The meter: what a sandbox used, from the seconds that it ran. Nothing is charged, and unknown stays unknown.
import type { Sandbox } from "../api/client";

export interface Metered {
  vcpuSeconds: number | null;
  gibSeconds: number | null;
}

/** Up to now: a running one has used more than when its record came, `ageSeconds` ago. */
export function meter(
  sandbox: Pick<Sandbox, "state" | "total_runtime_sec" | "cpu_granted" | "memory_mb">,
  ageSeconds: number,
): Metered {
  const ran = sandbox.total_runtime_sec;
  if (ran === null || ran === undefined) return { vcpuSeconds: null, gibSeconds: null };
  const seconds = ran + (sandbox.state === "running" ? Math.max(0, ageSeconds) : 0);
  const cpus = sandbox.cpu_granted;
  return {
    vcpuSeconds: cpus === null || cpus === undefined ? null : seconds * cpus,
    gibSeconds: (seconds * sandbox.memory_mb) / 1024,
  };
}

/** `206 vCPU-s`, `1.4 vCPU-h`: seconds while they can be read, hours after that; a dash for unknown. */
export function meterText(seconds: number | null, unit: string): string {
  if (seconds === null) return `— ${unit}`;
  if (seconds < 10_000) return `${Math.floor(seconds).toLocaleString("en-US")} ${unit}-s`;
  const hours = seconds / 3600;
  return `${hours < 100 ? hours.toFixed(1) : Math.round(hours).toLocaleString("en-US")} ${unit}-h`;
}
