// How the panes of one terminal tab lie: a tree of halves. Pure; every function gives a new tree. Panes are drawn from
// `layoutOf` as rectangles, so that a pane keeps its element (and its terminal) whatever happens to the tree around it.

/** `row` puts the second half to the right, `column` below. */
export type Direction = "row" | "column";
export type Side = "left" | "right" | "up" | "down";

export type SplitTree = PaneLeaf | SplitBranch;

export interface PaneLeaf {
  kind: "pane";
  pane: string;
}

export interface SplitBranch {
  kind: "split";
  /** Names the bar between the halves. */
  id: string;
  direction: Direction;
  /** Share of the first half, 0 to 1. */
  share: number;
  first: SplitTree;
  second: SplitTree;
}

/** In shares of the whole, 0 to 1. */
export interface Rect {
  x: number;
  y: number;
  width: number;
  height: number;
}

export interface Bar {
  id: string;
  direction: Direction;
  share: number;
  /** The two halves together: a drag of the bar is a share of this. */
  around: Rect;
}

export interface Layout {
  panes: { pane: string; rect: Rect }[];
  bars: Bar[];
}

export const SHARE_MIN = 0.1;
const WHOLE: Rect = { x: 0, y: 0, width: 1, height: 1 };

export function leaf(pane: string): PaneLeaf {
  return { kind: "pane", pane };
}

/** The panes in reading order. */
export function panesOf(tree: SplitTree): string[] {
  return tree.kind === "pane" ? [tree.pane] : [...panesOf(tree.first), ...panesOf(tree.second)];
}

/** Halves `pane` and puts `added` into the second half. */
export function split(tree: SplitTree, pane: string, direction: Direction, added: string, id: string): SplitTree {
  if (tree.kind === "split") {
    return {
      ...tree,
      first: split(tree.first, pane, direction, added, id),
      second: split(tree.second, pane, direction, added, id),
    };
  }
  if (tree.pane !== pane) return tree;
  return { kind: "split", id, direction, share: 0.5, first: tree, second: leaf(added) };
}

/** Takes `pane` out; its other half takes the place of both. `null` when nothing is left. */
export function remove(tree: SplitTree, pane: string): SplitTree | null {
  if (tree.kind === "pane") return tree.pane === pane ? null : tree;
  const [first, second] = [remove(tree.first, pane), remove(tree.second, pane)];
  if (first === null) return second;
  if (second === null) return first;
  return first === tree.first && second === tree.second ? tree : { ...tree, first, second };
}

/** Moves the bar `id`. */
export function resize(tree: SplitTree, id: string, share: number): SplitTree {
  if (tree.kind === "pane") return tree;
  if (tree.id === id) return { ...tree, share: Math.min(1 - SHARE_MIN, Math.max(SHARE_MIN, share)) };
  return { ...tree, first: resize(tree.first, id, share), second: resize(tree.second, id, share) };
}

export function layoutOf(tree: SplitTree, rect: Rect = WHOLE): Layout {
  if (tree.kind === "pane") return { panes: [{ pane: tree.pane, rect }], bars: [] };
  const { id, direction, share } = tree;
  const [one, two] = halves(rect, direction, share);
  const [first, second] = [layoutOf(tree.first, one), layoutOf(tree.second, two)];
  const bar: Bar = { id, direction, share, around: rect };
  return { panes: [...first.panes, ...second.panes], bars: [bar, ...first.bars, ...second.bars] };
}

/** The pane beside `pane` on that side, the one that shares most of the edge; `null` at the rim. */
export function neighbour(tree: SplitTree, pane: string, side: Side): string | null {
  const { panes } = layoutOf(tree);
  const from = panes.find((each) => each.pane === pane)?.rect;
  if (from === undefined) return null;
  let best: { pane: string; shared: number } | null = null;
  for (const other of panes) {
    if (other.pane === pane || !touches(from, other.rect, side)) continue;
    const shared =
      side === "left" || side === "right"
        ? overlap(from, other.rect, "y", "height")
        : overlap(from, other.rect, "x", "width");
    if (shared > 0 && (best === null || shared > best.shared)) best = { pane: other.pane, shared };
  }
  return best?.pane ?? null;
}

function halves(rect: Rect, direction: Direction, share: number): [Rect, Rect] {
  if (direction === "row") {
    const width = rect.width * share;
    return [
      { ...rect, width },
      { ...rect, x: rect.x + width, width: rect.width - width },
    ];
  }
  const height = rect.height * share;
  return [
    { ...rect, height },
    { ...rect, y: rect.y + height, height: rect.height - height },
  ];
}

function touches(from: Rect, to: Rect, side: Side): boolean {
  const near = (one: number, other: number) => Math.abs(one - other) < 1e-6;
  if (side === "left") return near(to.x + to.width, from.x);
  if (side === "right") return near(to.x, from.x + from.width);
  if (side === "up") return near(to.y + to.height, from.y);
  return near(to.y, from.y + from.height);
}

function overlap(one: Rect, other: Rect, start: "x" | "y", size: "width" | "height"): number {
  return Math.min(one[start] + one[size], other[start] + other[size]) - Math.max(one[start], other[start]);
}
