// The tree of files as data: which directories are loaded and open, and the rows to draw. Pure: the store
// (`file-tree.svelte.ts`) fetches and listens.
import type { FileChange, FileEntry } from "../api/files";
import type { ApiError } from "../api/errors";
import { afterMove, isWithin, parentOf } from "./paths";

export interface Directory {
  /** Sorted; null as long as they were never fetched. */
  entries: FileEntry[] | null;
  loading: boolean;
  error: ApiError | null;
}

export interface TreeState {
  root: string;
  directories: ReadonlyMap<string, Directory>;
  expanded: ReadonlySet<string>;
  showHidden: boolean;
  /** Links that turned out to lead to directories. */
  directoryLinks: ReadonlySet<string>;
}

export type Row =
  | {
      kind: "entry";
      path: string;
      entry: FileEntry;
      depth: number;
      expandable: boolean;
      expanded: boolean;
      loading: boolean;
      position: number;
      siblings: number;
    }
  /** Says why there is nothing below an open directory. */
  | { kind: "note"; path: string; depth: number; text: string; error: ApiError | null };

const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

/** Directories first, then names as people order them: `file2` before `file10`. */
export function sorted(entries: readonly FileEntry[]): FileEntry[] {
  return [...entries].sort((a, b) => {
    if (a.is_dir !== b.is_dir) return a.is_dir ? -1 : 1;
    // Names that differ only in case still have one order.
    return collator.compare(a.name, b.name) || (a.name < b.name ? -1 : 1);
  });
}

/** The visible rows, top to bottom. */
export function rowsOf(state: TreeState): Row[] {
  const rows: Row[] = [];
  addRows(state, state.root, 0, rows);
  return rows;
}

function addRows(state: TreeState, path: string, depth: number, rows: Row[]): void {
  const directory = state.directories.get(path);
  if (directory === undefined || directory.entries === null) {
    if (directory?.error != null)
      rows.push({ kind: "note", path, depth, text: directory.error.message, error: directory.error });
    return;
  }
  const entries = state.showHidden
    ? directory.entries
    : directory.entries.filter((entry) => !entry.name.startsWith("."));
  if (entries.length === 0 && depth > 0) {
    const hidden = directory.entries.length;
    rows.push({ kind: "note", path, depth, text: hidden === 0 ? "Empty" : `${hidden} hidden`, error: null });
  }
  entries.forEach((entry, index) => {
    const expandable = entry.is_dir || state.directoryLinks.has(entry.path);
    const expanded = expandable && state.expanded.has(entry.path);
    const loading = expanded && (state.directories.get(entry.path)?.loading ?? false);
    const place = { position: index + 1, siblings: entries.length };
    rows.push({ kind: "entry", path: entry.path, entry, depth, expandable, expanded, loading, ...place });
    if (expanded) addRows(state, entry.path, depth + 1, rows);
  });
}

/** What a frame of a watch means for what is loaded. */
export interface Effect {
  /** These directories are to be fetched anew. */
  stale: string[];
  /** What is known of these and of all below them is worth nothing. */
  forget: string[];
  moved: { from: string; to: string } | null;
  /** Everything that is loaded is to be fetched anew: changes are missing. */
  all: boolean;
  /** So many directories are not watched. */
  unwatched: number | null;
}

const NOTHING: Effect = { stale: [], forget: [], moved: null, all: false, unwatched: null };

export function effectOf(change: FileChange): Effect {
  switch (change.event) {
    case "overflow":
      return { ...NOTHING, all: true };
    case "limit":
      return { ...NOTHING, unwatched: change.directories ?? 0 };
    case "deleted":
      return { ...NOTHING, stale: [parentOf(change.path)], forget: [change.path] };
    case "renamed": {
      const from = change.old_path;
      if (from == null) return { ...NOTHING, stale: [parentOf(change.path)] };
      return {
        ...NOTHING,
        stale: [...new Set([parentOf(from), parentOf(change.path)])],
        moved: { from, to: change.path },
      };
    }
    default:
      return { ...NOTHING, stale: [parentOf(change.path)] };
  }
}

/** Keys of a map or set after `from` became `to`: open folders stay open under their new name. */
export function movedKeys(keys: Iterable<string>, from: string, to: string): { before: string; after: string }[] {
  return [...keys]
    .filter((key) => isWithin(key, from))
    .map((before) => ({ before, after: afterMove(before, from, to) }));
}

/** The row that a key leads to in a tree (WAI-ARIA, tree view). */
export type Step = { to: number } | { expand: string } | { collapse: string } | null;

export function stepOf(key: string, rows: readonly Row[], at: number): Step {
  const row = rows[at];
  const last = rows.length - 1;
  switch (key) {
    case "ArrowDown":
      return { to: Math.min(last, at + 1) };
    case "ArrowUp":
      return { to: Math.max(0, at - 1) };
    case "Home":
      return { to: 0 };
    case "End":
      return { to: last };
    case "ArrowRight":
      if (row?.kind !== "entry" || !row.expandable) return null;
      return row.expanded ? { to: Math.min(last, at + 1) } : { expand: row.path };
    case "ArrowLeft": {
      if (row?.kind === "entry" && row.expanded) return { collapse: row.path };
      const depth = row?.depth ?? 0;
      const parent = rows.findLastIndex((other, index) => index < at && other.depth < depth);
      return parent < 0 ? null : { to: parent };
    }
    default:
      return null;
  }
}

/** The next row whose name begins with what was typed, from `at` on and around. */
export function typeAhead(rows: readonly Row[], at: number, typed: string): number {
  const wanted = typed.toLowerCase();
  // With one letter one goes on to the next match; with more one stays while it still fits.
  const from = typed.length === 1 ? at + 1 : at;
  for (let offset = 0; offset < rows.length; offset += 1) {
    const index = (from + offset) % rows.length;
    const row = rows[index];
    if (row?.kind === "entry" && row.entry.name.toLowerCase().startsWith(wanted)) return index;
  }
  return -1;
}
