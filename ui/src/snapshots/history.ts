// The history that a sandbox belongs to, as a tree: snapshots, and the live sandboxes that go on from them. Pure.
import type { Sandbox, Snapshot } from "../api/client";

export type HistoryNode =
  | { kind: "origin"; id: "origin"; template: string; children: HistoryNode[] }
  | { kind: "snapshot"; id: string; snapshot: Snapshot; children: HistoryNode[] }
  | { kind: "sandbox"; id: string; sandbox: Sandbox; children: HistoryNode[] };

/** What lies between a sandbox and what it or its snapshots came from, with all that branched off; oldest first. The root
 * is the template. A snapshot whose parent was deleted begins at the root. */
export function historyOf(sandbox: Sandbox, snapshots: Snapshot[], sandboxes: Sandbox[]): HistoryNode {
  const nodes = new Map<string, HistoryNode>();
  const parents = new Map<string, string | null>();
  for (const snapshot of snapshots) {
    nodes.set(snapshot.id, { kind: "snapshot", id: snapshot.id, snapshot, children: [] });
    parents.set(snapshot.id, snapshot.parent_id ?? null);
  }
  for (const each of [sandbox, ...sandboxes.filter((other) => other.id !== sandbox.id)]) {
    nodes.set(each.id, { kind: "sandbox", id: each.id, sandbox: each, children: [] });
    parents.set(each.id, each.snapshot_id ?? null);
  }
  const tops = new Set<string>([topOf(sandbox.id, parents)]);
  for (const snapshot of snapshots) {
    if (snapshot.sandbox_id === sandbox.id) tops.add(topOf(snapshot.id, parents));
  }
  const roots: HistoryNode[] = [];
  for (const [id, node] of nodes) {
    const above = nodes.get(parents.get(id) ?? "");
    if (above !== undefined) above.children.push(node);
    else if (tops.has(id)) roots.push(node);
  }
  for (const node of nodes.values()) node.children.sort(byTime);
  return { kind: "origin", id: "origin", template: sandbox.template_id, children: roots.sort(byTime) };
}

/** Where a walk to the parents ends; a circle, which no server makes, ends too. */
function topOf(id: string, parents: Map<string, string | null>): string {
  const seen = new Set<string>();
  let at = id;
  for (;;) {
    seen.add(at);
    const parent = parents.get(at) ?? null;
    if (parent === null || !parents.has(parent) || seen.has(parent)) return at;
    at = parent;
  }
}

function byTime(a: HistoryNode, b: HistoryNode): number {
  return timeOf(a).localeCompare(timeOf(b)) || a.id.localeCompare(b.id);
}

function timeOf(node: HistoryNode): string {
  if (node.kind === "origin") return "";
  return node.kind === "snapshot" ? node.snapshot.created_at : node.sandbox.created_at;
}

/** What people call a snapshot: its name, its comment, or its id. */
export function snapshotTitle(snapshot: Pick<Snapshot, "id" | "name" | "comment">): string {
  return snapshot.name ?? (snapshot.comment || snapshot.id);
}

/** How many snapshots a history holds. */
export function countSnapshots(node: HistoryNode): number {
  return (node.kind === "snapshot" ? 1 : 0) + node.children.reduce((sum, child) => sum + countSnapshots(child), 0);
}
