// What this computer grants, as the server found it; pure.
import type { SystemInfo } from "../api/client";
import type { Fact } from "../components/Facts.svelte";
import { megabytes } from "../lib/format";

export function hostFacts({ version, host, limits }: SystemInfo): Fact[] {
  const [, memoryMost = 0] = limits.memory_mb;
  const [, diskMost = 0] = limits.disk_size_mb;
  return [
    { label: "Cove", value: version },
    { label: "Processor", value: host.cpu_model },
    {
      label: "KVM",
      value: `${host.kvm}, ${host.module}${host.assist ? ", with help for an emulated guest kernel" : ""}`,
    },
    { label: "vCPUs", value: `at most ${limits.cpu_granted_max} granted to a sandbox` },
    { label: "Sandbox", value: `up to ${megabytes(memoryMost)} of memory and ${megabytes(diskMost)} of disk` },
    { label: "Sandboxes", value: `at most ${limits.sandboxes_max}` },
  ];
}
