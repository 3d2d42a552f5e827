// May an edited file be saved over what the sandbox has? Pure: whoever saves looks first, then asks here.
import type { FileEntry } from "../api/files";

/** By what one sees that a file was written. Same time and length count as the same content. */
export interface Version {
  modified_at: string | null;
  size: number;
}

export function versionOf(entry: FileEntry): Version {
  return { modified_at: entry.modified_at ?? null, size: entry.size };
}

export function sameVersion(a: Version | null, b: Version | null): boolean {
  if (a === null || b === null) return a === b;
  return a.modified_at === b.modified_at && a.size === b.size;
}

export type Check =
  /** Nobody else wrote it. */
  | "save"
  /** It may have changed: its content decides. */
  | "read"
  /** It was not there, or is there no more. */
  | "missing";

/** `base` is what the edit began from (null: the file is new), `now` what the sandbox has (null: nothing). */
export function checkVersions(base: Version | null, now: Version | null, isLink: boolean): Check {
  if (now === null) return base === null ? "save" : "missing";
  // The times of a link say nothing of the file behind it.
  if (isLink) return "read";
  return sameVersion(base, now) ? "save" : "read";
}

export type Verdict = "save" | "same" | "conflict";

/** With what the sandbox has at hand. `theirs` null: no text. */
export function judge(base: string | null, mine: string, theirs: string | null): Verdict {
  if (theirs === mine) return "same";
  // Touched, or written with what was there.
  return theirs !== null && theirs === base ? "save" : "conflict";
}
