// Which sandboxes the list shows, and in which order; pure, and fast for thousands.
import type { Sandbox } from "../api/client";
import { titleOf } from "./sandbox-view";

export type StateGroup = "all" | "running" | "paused" | "error" | "other";
export type SortKey = "name" | "state" | "template" | "size" | "uptime" | "usage" | "created";

export interface ListView {
  text: string;
  state: StateGroup;
  /** Empty means any. */
  tag: string;
  sort: SortKey;
  descending: boolean;
}

export const FIRST_VIEW: ListView = { text: "", state: "all", tag: "", sort: "created", descending: true };

/** The group that a state is counted in. */
export function groupOf(state: string): Exclude<StateGroup, "all"> {
  return state === "running" || state === "paused" || state === "error" ? state : "other";
}

/** How many there are of each group. */
export function countGroups(items: readonly Sandbox[]): Record<StateGroup, number> {
  const counts = { all: items.length, running: 0, paused: 0, error: 0, other: 0 };
  for (const item of items) counts[groupOf(item.state)] += 1;
  return counts;
}

/** All tags, each once, in order. */
export function tagsOf(items: readonly Sandbox[]): string[] {
  return [...new Set(items.flatMap((item) => item.tags))].sort((a, b) => a.localeCompare(b));
}

/** The text in which one looks; made once a record, since records are replaced and never changed. */
const haystacks = new WeakMap<Sandbox, string>();

function haystackOf(sandbox: Sandbox): string {
  let text = haystacks.get(sandbox);
  if (text === undefined) {
    text = [sandbox.name ?? "", sandbox.id, sandbox.template_id, ...sandbox.tags].join("\n").toLowerCase();
    haystacks.set(sandbox, text);
  }
  return text;
}

/** What the list shows: every word must be in name, id, template or a tag. */
export function filterSandboxes(items: readonly Sandbox[], view: ListView): Sandbox[] {
  const words = view.text.toLowerCase().split(/\s+/).filter(Boolean);
  const kept = items.filter(
    (item) =>
      (view.state === "all" || groupOf(item.state) === view.state) &&
      (view.tag === "" || item.tags.includes(view.tag)) &&
      words.every((word) => haystackOf(item).includes(word)),
  );
  const value = VALUES[view.sort];
  const sign = view.descending ? -1 : 1;
  return kept
    .map((item) => ({ item, value: value(item) }))
    .sort((a, b) => sign * compare(a.value, b.value) || compare(b.item.created_at, a.item.created_at))
    .map(({ item }) => item);
}

const STATE_ORDER = ["running", "creating", "resuming", "snapshotting", "pausing", "paused", "error", "destroying"];

const VALUES: Record<SortKey, (sandbox: Sandbox) => string | number> = {
  name: (sandbox) => titleOf(sandbox).toLowerCase(),
  state: (sandbox) => STATE_ORDER.indexOf(sandbox.state),
  template: (sandbox) => sandbox.template_id,
  size: (sandbox) => sandbox.memory_mb * 1000 + sandbox.cpu_count,
  // Longest first when descending: the earliest start; those that do not run are last.
  uptime: (sandbox) =>
    sandbox.state === "running" && sandbox.started_at ? Number.MAX_SAFE_INTEGER - Date.parse(sandbox.started_at) : -1,
  usage: (sandbox) => (sandbox.total_runtime_sec ?? -1) * sandbox.memory_mb,
  created: (sandbox) => sandbox.created_at,
};

function compare(a: string | number, b: string | number): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
