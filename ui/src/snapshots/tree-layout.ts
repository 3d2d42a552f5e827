// Where each node of a history stands, which one an arrow key leads to, and how the view is moved and scaled. Pure.
import { hierarchy, tree } from "d3-hierarchy";
import type { HistoryNode } from "./history";

/** Size of a card and the gaps around it, in the drawing's own units. */
export const CARD = { width: 220, height: 58, gapX: 20, gapY: 30 };

export interface Placed {
  id: string;
  node: HistoryNode;
  /** The card's left upper corner. */
  x: number;
  y: number;
  depth: number;
  parent: string | null;
  /** Among its siblings, from 1. */
  position: number;
  siblings: number;
}

export interface Layout {
  nodes: Placed[];
  links: { id: string; path: string }[];
  width: number;
  height: number;
}

export function layoutOf(root: HistoryNode): Layout {
  const { width, height, gapX, gapY } = CARD;
  const laid = tree<HistoryNode>()
    .nodeSize([width + gapX, height + gapY])
    .separation(() => 1)(hierarchy(root, (node) => node.children));
  const all = laid.descendants();
  const left = Math.min(...all.map((node) => node.x));
  const nodes = all.map((node): Placed => {
    const siblings = node.parent?.children ?? [node];
    return {
      id: node.data.id,
      node: node.data,
      x: node.x - left,
      y: node.y,
      depth: node.depth,
      parent: node.parent?.data.id ?? null,
      position: siblings.indexOf(node) + 1,
      siblings: siblings.length,
    };
  });
  const links = laid.links().map(({ source, target }) => {
    const [x0, y0] = [source.x - left + width / 2, source.y + height];
    const [x1, y1] = [target.x - left + width / 2, target.y];
    const middle = (y0 + y1) / 2;
    return { id: target.data.id, path: `M${x0},${y0}C${x0},${middle} ${x1},${middle} ${x1},${y1}` };
  });
  return {
    nodes,
    links,
    width: Math.max(...nodes.map((node) => node.x)) + width,
    height: Math.max(...nodes.map((node) => node.y)) + height,
  };
}

/** Where a key leads from a node; `null` for keys that mean nothing here. */
export function stepTo(layout: Layout, from: string, key: string): string | null {
  const at = layout.nodes.find((node) => node.id === from);
  if (at === undefined) return layout.nodes[0]?.id ?? null;
  const row = layout.nodes.filter((node) => node.depth === at.depth).sort((a, b) => a.x - b.x);
  const place = row.indexOf(at);
  switch (key) {
    case "ArrowUp":
      return at.parent ?? from;
    case "ArrowDown":
      return layout.nodes.find((node) => node.parent === from)?.id ?? from;
    case "ArrowLeft":
      return row[place - 1]?.id ?? from;
    case "ArrowRight":
      return row[place + 1]?.id ?? from;
    case "Home":
      return layout.nodes[0]?.id ?? from;
    case "End":
      return layout.nodes.at(-1)?.id ?? from;
    default:
      return null;
  }
}

/** How the drawing is shown: moved by x and y, after it was scaled. */
export interface View {
  x: number;
  y: number;
  scale: number;
}

export interface Box {
  width: number;
  height: number;
}

const SCALE_MIN = 0.25;
const SCALE_MAX = 1.6;
const MARGIN = 24;

/** The whole drawing, never larger than life, centred; one that is small stands near the top. */
export function fit(layout: Box, box: Box): View {
  const across = (box.width - 2 * MARGIN) / layout.width;
  const down = (box.height - 2 * MARGIN) / layout.height;
  const scale = clamp(Math.min(across, down, 1));
  const x = (box.width - layout.width * scale) / 2;
  const y = Math.max(MARGIN, Math.min((box.height - layout.height * scale) / 2, MARGIN * 2));
  return { x, y, scale };
}

/** Scaled by `factor` so that the point under the pointer stays where it is. */
export function zoomAt(view: View, factor: number, x: number, y: number): View {
  const scale = clamp(view.scale * factor);
  const real = scale / view.scale;
  return { scale, x: x - (x - view.x) * real, y: y - (y - view.y) * real };
}

/** Moved as little as needed to have a card in sight. */
export function reveal(view: View, card: { x: number; y: number }, box: Box): View {
  const { width, height } = CARD;
  const shift = (from: number, length: number, room: number) =>
    from < MARGIN ? MARGIN - from : from + length > room - MARGIN ? room - MARGIN - from - length : 0;
  const dx = shift(view.x + card.x * view.scale, width * view.scale, box.width);
  const dy = shift(view.y + card.y * view.scale, height * view.scale, box.height);
  return { scale: view.scale, x: view.x + dx, y: view.y + dy };
}

function clamp(scale: number): number {
  return Math.min(SCALE_MAX, Math.max(SCALE_MIN, scale));
}
