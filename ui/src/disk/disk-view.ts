// What takes how much of the disk, as rows and as a bar, and how each can be reclaimed. Pure.
import type { DiskUse, Sandbox, Snapshot } from "../api/client";
import { megabytes } from "../lib/format";
import { snapshotTitle } from "../snapshots/history";

export type OwnerKind = "sandbox" | "snapshot" | "prepared" | "viewer" | "template";

export interface DiskRow {
  id: string;
  kind: OwnerKind;
  title: string;
  /** Beside the title: whose snapshot, which shape. */
  note: string;
  exclusive: number;
  shared: number;
  /** How its own bytes become free; `null` when there is a call for it. */
  why: string | null;
}

const WHY: Partial<Record<OwnerKind, string>> = {
  prepared: "Goes by itself",
  viewer: "Ends by itself",
  template: "Needed by all",
};

/** Largest first, by what is free again when it goes. */
export function diskRows(disk: DiskUse, sandboxes: Map<string, Sandbox>, snapshots: Map<string, Snapshot>): DiskRow[] {
  const owners = Object.entries(disk.owners).map(([id, share]): DiskRow => {
    const kind = kindOf(share.kind);
    const words = { title: id, note: "", ...wordsOf(id, kind) };
    return {
      id,
      kind,
      ...words,
      exclusive: share.exclusive_bytes,
      shared: share.shared_bytes,
      why: WHY[kind] ?? null,
    };
  });
  const templates = Object.entries(disk.templates).map(([id, taken]): DiskRow => ({
    id: `template ${id}`,
    kind: "template",
    title: id,
    note: "base disk",
    exclusive: taken,
    shared: 0,
    why: WHY.template ?? null,
  }));
  return [...owners, ...templates].sort((a, b) => b.exclusive - a.exclusive || a.title.localeCompare(b.title));

  function wordsOf(id: string, kind: OwnerKind): { title?: string; note?: string } {
    if (kind === "sandbox") {
      const sandbox = sandboxes.get(id);
      return sandbox === undefined ? {} : { title: sandbox.name ?? id, note: sandbox.state };
    }
    if (kind === "snapshot") {
      const snapshot = snapshots.get(id);
      if (snapshot === undefined) return {};
      return { title: snapshotTitle(snapshot), note: `of ${snapshot.sandbox_name ?? snapshot.sandbox_id}` };
    }
    if (kind === "viewer") return { title: "A look into a snapshot", note: id };
    const prepared = disk.owners[id]?.prepared;
    if (!prepared) return {};
    const { template_id, cpu_count, memory_mb, disk_size_mb } = prepared;
    return { title: template_id, note: `${cpu_count} vCPU · ${megabytes(memory_mb)} · ${megabytes(disk_size_mb)}` };
  }
}

function kindOf(word: string): OwnerKind {
  return word === "snapshot" || word === "prepared" || word === "viewer" ? word : "sandbox";
}

export interface BarPart {
  id: "sandboxes" | "snapshots" | "prepared" | "shared" | "templates";
  label: string;
  bytes: number;
}

/** What all of it takes, in parts that add up: own bytes by kind, and what several share once. */
export function barOf(disk: DiskUse, rows: DiskRow[]): BarPart[] {
  const sum = (...kinds: OwnerKind[]) =>
    rows.filter((row) => kinds.includes(row.kind)).reduce((total, row) => total + row.exclusive, 0);
  const parts: BarPart[] = [
    { id: "templates", label: "Templates", bytes: sum("template") },
    { id: "sandboxes", label: "Sandboxes", bytes: sum("sandbox", "viewer") },
    { id: "snapshots", label: "Snapshots", bytes: sum("snapshot") },
    { id: "prepared", label: "Prepared machines", bytes: sum("prepared") },
    { id: "shared", label: "Shared by several", bytes: Math.max(0, disk.owned_bytes - disk.exclusive_bytes) },
  ];
  return parts.filter((part) => part.bytes > 0);
}
