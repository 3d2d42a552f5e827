// What a comparison of files says, as rows; and whether a file can be shown as text. Pure.
import type { FileComparison, FileDifference } from "../api/client";
import { bytes } from "../lib/format";

export type Change = "added" | "removed" | "modified" | "permissions";

export interface DifferenceRow {
  path: string;
  /** Below the compared directory. */
  name: string;
  change: Change;
  /** `+`, `−`, `~`. */
  sign: string;
  /** `52 B → 91 B`, `0644 → 0755`, `directory`. */
  detail: string;
  /** Its content can be looked at. */
  isFile: boolean;
}

const SIGNS: Record<Change, string> = { added: "+", removed: "−", modified: "~", permissions: "~" };

/** Most bytes of a file that the page compares as text. */
export const TEXT_BYTES_MAX = 1 << 20;

export function rowsOf(found: FileComparison): DifferenceRow[] {
  const prefix = found.path.endsWith("/") ? found.path : `${found.path}/`;
  return found.differences.map((difference) => {
    const change = changeOf(difference.change);
    const { path } = difference;
    return {
      path,
      name: path.startsWith(prefix) ? path.slice(prefix.length) : path,
      change,
      sign: SIGNS[change],
      detail: detailOf(difference),
      isFile: difference.before?.type === "file" || difference.after?.type === "file",
    };
  });
}

function changeOf(word: string): Change {
  return word in SIGNS ? (word as Change) : "modified";
}

function detailOf({ before, after }: FileDifference): string {
  if (before && after) {
    if (before.type !== after.type) return `${before.type} → ${after.type}`;
    if (before.size !== after.size) return `${bytes(before.size)} → ${bytes(after.size)}`;
    return before.mode === after.mode ? bytes(after.size) : `${before.mode} → ${after.mode}`;
  }
  const only = after ?? before;
  if (!only) return "";
  return only.type === "file" ? bytes(only.size) : only.type;
}

/** `2 added, 1 removed`; what is not there is not said. */
export function summaryOf(rows: DifferenceRow[], more: number): string {
  if (rows.length === 0) return "No differences";
  const counts = (["added", "removed", "modified", "permissions"] as const)
    .map((change) => [rows.filter((row) => row.change === change).length, change] as const)
    .filter(([number]) => number > 0)
    .map(([number, change]) => `${number} ${change}`);
  return counts.join(", ") + (more > 0 ? `, and ${more} more that are not listed` : "");
}

/** The text in some bytes; `null` when they are none: a zero byte, or not UTF-8. */
export function textOf(content: ArrayBuffer): string | null {
  const data = new Uint8Array(content);
  if (data.includes(0)) return null;
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(data);
  } catch {
    return null;
  }
}
