import { expect, it } from "vitest";
import type { DiskUse, Sandbox, Snapshot } from "../api/client";
import { barOf, diskRows } from "./disk-view";

const prepared = { template_id: "base", cpu_count: 1, memory_mb: 512, disk_size_mb: 2048, used_at: "" };
const share = (kind: string, exclusive_bytes: number, shared_bytes = 0, more: object | null = null) => ({
  kind,
  exclusive_bytes,
  shared_bytes,
  prepared: more,
});
const disk = {
  owners: {
    sbx_1: share("sandbox", 5, 10),
    sbx_2: share("sandbox", 1),
    sbx_3: share("viewer", 2),
    snap_1: share("snapshot", 7, 10),
    "base@1 x": share("prepared", 3, 0, prepared),
  },
  templates: { base: 100 },
  owned_bytes: 28,
  exclusive_bytes: 18,
} as unknown as DiskUse;
const rows = diskRows(
  disk,
  new Map([["sbx_1", { id: "sbx_1", name: "demo", state: "running" } as Sandbox]]),
  new Map([["snap_1", { id: "snap_1", name: null, comment: "works", sandbox_name: "demo" } as Snapshot]]),
);

it("says what each is, the largest first, and which go by themselves", () => {
  expect(rows.map((row) => `${row.exclusive} ${row.kind} ${row.title} (${row.note}) ${row.why ?? ""}`.trim())).toEqual([
    "100 template base (base disk) Needed by all",
    "7 snapshot works (of demo)",
    "5 sandbox demo (running)",
    "3 prepared base (1 vCPU · 512 MB · 2 GB) Goes by itself",
    "2 viewer A look into a snapshot (sbx_3) Ends by itself",
    "1 sandbox sbx_2 ()",
  ]);
});

it("adds up to what is taken", () => {
  const parts = barOf(disk, rows);
  expect(parts.map((part) => [part.id, part.bytes])).toEqual([
    ["templates", 100],
    ["sandboxes", 8],
    ["snapshots", 7],
    ["prepared", 3],
    ["shared", 10],
  ]);
  expect(parts.reduce((sum, part) => sum + part.bytes, 0)).toBe(100 + disk.owned_bytes);
});
