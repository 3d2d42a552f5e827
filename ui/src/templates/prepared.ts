// The prepared machines of a template, out of what the disk's overview says. Pure.
import type { DiskUse } from "../api/client";

export interface Prepared {
  key: string;
  cpu_count: number;
  memory_mb: number;
  disk_size_mb: number;
  used_at: string;
  bytes: number;
}

/** Smallest first. */
export function preparedOf(disk: DiskUse | null, template: string): Prepared[] {
  const found = Object.entries(disk?.owners ?? {}).flatMap(([key, share]): Prepared[] => {
    const { prepared } = share;
    if (!prepared || prepared.template_id !== template) return [];
    const { cpu_count, memory_mb, disk_size_mb, used_at } = prepared;
    return [{ key, cpu_count, memory_mb, disk_size_mb, used_at, bytes: share.exclusive_bytes + share.shared_bytes }];
  });
  return found.sort((a, b) => a.memory_mb - b.memory_mb || a.disk_size_mb - b.disk_size_mb);
}
