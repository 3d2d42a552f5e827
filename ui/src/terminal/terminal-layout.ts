// Which sessions lie in which tabs and panes. Kept in the browser for each sandbox, and made to agree with what the
// server says exists. Pure but for `load` and `save`.
import { leaf, panesOf, remove, type SplitTree } from "./split-tree";

export interface TerminalPane {
  /** `null`: to be opened on the server once its size is known. */
  session: string | null;
}

export interface TerminalTab {
  id: string;
  /** Given by the user; otherwise the shell's title is shown. */
  name: string | null;
  tree: SplitTree;
  /** The pane that has the focus when the tab is shown. */
  focus: string;
}

export interface TerminalLayout {
  tabs: TerminalTab[];
  panes: Record<string, TerminalPane>;
  active: string | null;
}

export const EMPTY_LAYOUT: TerminalLayout = { tabs: [], panes: {}, active: null };

const keyOf = (sandbox: string) => `cove.terminal.${sandbox}`;

/** Sessions of the server that lie nowhere get tabs; panes whose session is gone are taken out. */
export function reconcile(layout: TerminalLayout, sessions: readonly string[], newId: () => string): TerminalLayout {
  const alive = new Set(sessions);
  const panes: Record<string, TerminalPane> = {};
  const tabs: TerminalTab[] = [];
  for (const tab of layout.tabs) {
    let tree: SplitTree | null = tab.tree;
    for (const pane of panesOf(tab.tree)) {
      const session = layout.panes[pane]?.session ?? null;
      if (session !== null && alive.delete(session)) panes[pane] = { session };
      else tree = tree && remove(tree, pane);
    }
    if (tree === null) continue;
    const focus = panes[tab.focus] === undefined ? (panesOf(tree)[0] ?? "") : tab.focus;
    tabs.push({ ...tab, tree, focus });
  }
  for (const session of sessions.filter((each) => alive.has(each))) {
    const pane = newId();
    panes[pane] = { session };
    tabs.push(tabWith(newId(), pane));
  }
  const active = tabs.some((tab) => tab.id === layout.active) ? layout.active : (tabs[0]?.id ?? null);
  return { tabs, panes, active };
}

export function tabWith(id: string, pane: string): TerminalTab {
  return { id, name: null, tree: leaf(pane), focus: pane };
}

export function load(sandbox: string): TerminalLayout {
  try {
    const stored: unknown = JSON.parse(localStorage.getItem(keyOf(sandbox)) ?? "null");
    return isLayout(stored) ? stored : EMPTY_LAYOUT;
  } catch {
    return EMPTY_LAYOUT;
  }
}

export function save(sandbox: string, layout: TerminalLayout): void {
  try {
    if (layout.tabs.length === 0) localStorage.removeItem(keyOf(sandbox));
    else localStorage.setItem(keyOf(sandbox), JSON.stringify(layout));
  } catch {
    // Without storage the layout lasts as long as the page; the sessions live on the server anyway.
  }
}

function isLayout(value: unknown): value is TerminalLayout {
  if (!isObject(value) || !Array.isArray(value.tabs) || !isObject(value.panes)) return false;
  const { panes } = value;
  return (
    Object.values(panes).every(
      (pane) => isObject(pane) && (pane.session === null || typeof pane.session === "string"),
    ) &&
    value.tabs.every(
      (tab) => isObject(tab) && typeof tab.id === "string" && typeof tab.focus === "string" && isTree(tab.tree),
    )
  );
}

function isTree(value: unknown): value is SplitTree {
  if (!isObject(value)) return false;
  if (value.kind === "pane") return typeof value.pane === "string";
  const { id, share, direction, first, second } = value;
  return (
    value.kind === "split" &&
    typeof id === "string" &&
    typeof share === "number" &&
    (direction === "row" || direction === "column") &&
    isTree(first) &&
    isTree(second)
  );
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
