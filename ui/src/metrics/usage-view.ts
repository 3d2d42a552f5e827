// The usage of a sandbox in words; what was not measured is unknown, not zero. Pure.
import type { Usage } from "../api/client";

export interface MeterEntry {
  label: string;
  value: string;
  known: boolean;
  /** As the server says: `measured`, `sampled`, `unavailable`. */
  status: string;
  explanation: string;
}

export function meterOf(usage: Usage): MeterEntry[] {
  const { provisioned_resources, active_cpu, network } = usage.measurement_status;
  const ran = provisioned_resources !== "unavailable";
  const traffic = usage.network_egress_bytes ?? null;
  return [
    {
      label: "vCPU-seconds",
      value: ran ? grouped(usage.provisioned_vcpu_ms / 1000) : "Unknown",
      known: ran,
      status: provisioned_resources,
      explanation: "Time that it ran, times its vCPUs",
    },
    {
      label: "GiB-seconds",
      value: ran ? grouped(usage.provisioned_memory_mb_ms / 1024 / 1000) : "Unknown",
      known: ran,
      status: provisioned_resources,
      explanation: "Time that it ran, times its memory",
    },
    {
      label: "Processor time",
      value: usage.active_cpu_ms == null ? "Unknown" : `${grouped(usage.active_cpu_ms / 1000)} s`,
      known: usage.active_cpu_ms != null,
      status: active_cpu,
      explanation: active_cpu === "sampled" ? "Read every 5 s while it runs" : "Nobody looked",
    },
    {
      label: "Network",
      value: traffic === null ? "Unknown" : `${grouped(traffic)} B`,
      known: traffic !== null,
      status: network,
      explanation: traffic === null ? "Sandboxes have no network" : "Bytes that left it",
    },
  ];
}

/** Whole numbers from a hundred on, one digit below. */
function grouped(value: number): string {
  return value.toLocaleString("en-US", { maximumFractionDigits: value < 100 ? 1 : 0 });
}
