// A sandbox's record for tests: whole, running, and changed where a test says so.
import type { Sandbox } from "./api/client";

export function testSandbox(change: Partial<Sandbox> = {}): Sandbox {
  const id = change.id ?? "sbx_1";
  return {
    ...{ id, state: "running", ready: true, template_id: "miosa-sandbox", image_id: "miosa-sandbox", name: null },
    ...{ cpu_count: 1, cpu_granted: 1, memory_mb: 512, disk_size_mb: 2048, disk_mb: 2048, size: null },
    ...{ timeout_sec: 300, idle_timeout_sec: 0, timeout_remaining_ms: 120_000, always_on: false, persistent: true },
    ...{ metadata: {}, tags: [], boot_ms: 400, boot_path: "warm", checkpoint_pending: false, generation: 0 },
    ...{ created_at: "2026-01-01T00:00:00Z", inserted_at: "2026-01-01T00:00:00Z", started_at: "2026-01-01T00:00:01Z" },
    ...{ total_runtime_sec: 60, stable_for_embedding: false },
    resource_contract: { id: "c", version: "v1", product: "sandbox", vcpus: 1, memory_mb: 512, disk_size_mb: 2048 },
    ...change,
  };
}
