import { describe, expect, it } from "vitest";
import type { Sandbox, Snapshot } from "../api/client";
import { countSnapshots, historyOf, snapshotTitle, type HistoryNode } from "./history";
import { CARD, fit, layoutOf, reveal, stepTo, zoomAt } from "./tree-layout";

const at = (minute: number) => `2026-01-01T00:${String(minute).padStart(2, "0")}:00Z`;
const snap = (id: string, sandbox_id: string, parent_id: string | null, minute: number) =>
  ({ id, sandbox_id, parent_id, created_at: at(minute), name: null, comment: null }) as unknown as Snapshot;
const box = (id: string, snapshot_id: string | null, minute = 0) =>
  ({ id, snapshot_id, created_at: at(minute), template_id: "base" }) as unknown as Sandbox;

/** `origin(a(b,sbx_1))` */
function drawn(node: HistoryNode): string {
  return node.children.length === 0 ? node.id : `${node.id}(${node.children.map(drawn).join(",")})`;
}

describe("a history", () => {
  const own = box("sbx_1", "b");
  const cases: [string, Sandbox, Snapshot[], Sandbox[], string][] = [
    ["nothing was taken", box("sbx_1", null), [], [], "origin(sbx_1)"],
    ["a chain", own, [snap("b", "sbx_1", "a", 2), snap("a", "sbx_1", null, 1)], [], "origin(a(b(sbx_1)))"],
    [
      "a restore makes a branch, oldest first",
      own,
      [snap("c", "sbx_1", "a", 3), snap("b", "sbx_1", "a", 2), snap("a", "sbx_1", null, 1)],
      [],
      "origin(a(b(sbx_1),c))",
    ],
    [
      "forks stand under what they came from, strangers nowhere",
      own,
      [snap("b", "sbx_1", null, 2), snap("x", "sbx_9", null, 1)],
      [own, box("sbx_2", "b", 5), box("sbx_9", "x")],
      "origin(b(sbx_1,sbx_2))",
    ],
    ["a deleted parent", own, [snap("b", "sbx_1", "gone", 2)], [], "origin(b(sbx_1))"],
    [
      "two stems of one sandbox",
      own,
      [snap("b", "sbx_1", "gone", 2), snap("old", "sbx_1", "gone", 1)],
      [],
      "origin(old,b(sbx_1))",
    ],
    ["a circle ends", own, [snap("b", "sbx_1", "c", 2), snap("c", "sbx_1", "b", 1)], [], "origin"],
  ];
  it.each(cases)("%s", (_, sandbox, snapshots, sandboxes, expected) => {
    expect(drawn(historyOf(sandbox, snapshots, sandboxes))).toBe(expected);
  });

  it("counts its snapshots and names them", () => {
    expect(countSnapshots(historyOf(own, [snap("b", "sbx_1", "a", 2), snap("a", "sbx_1", null, 1)], []))).toBe(2);
    expect(snapshotTitle({ id: "snap_1", name: "golden", comment: "c" })).toBe("golden");
    expect(snapshotTitle({ id: "snap_1", name: null, comment: "works" })).toBe("works");
    expect(snapshotTitle({ id: "snap_1", name: null, comment: "" })).toBe("snap_1");
  });
});

describe("its layout", () => {
  const snapshots = [snap("c", "sbx_1", "a", 3), snap("b", "sbx_1", "a", 2), snap("a", "sbx_1", null, 1)];
  const layout = layoutOf(historyOf(box("sbx_1", "b", 9), snapshots, []));

  it("begins at zero and lets no two cards touch", () => {
    expect(Math.min(...layout.nodes.map((node) => node.x))).toBe(0);
    for (const one of layout.nodes) {
      for (const two of layout.nodes) {
        if (one === two || one.y !== two.y) continue;
        expect(Math.abs(one.x - two.x)).toBeGreaterThanOrEqual(CARD.width + CARD.gapX);
      }
    }
    expect(layout.links).toHaveLength(layout.nodes.length - 1);
  });

  const steps: [string, string, string | null][] = [
    ["b", "ArrowUp", "a"],
    ["a", "ArrowDown", "b"],
    ["b", "ArrowRight", "c"],
    ["b", "ArrowLeft", "b"],
    ["sbx_1", "ArrowDown", "sbx_1"],
    ["b", "Home", "origin"],
    ["b", "x", null],
    ["gone", "ArrowUp", "origin"],
  ];
  it.each(steps)("from %s, %s leads to %s", (from, key, to) => {
    expect(stepTo(layout, from, key)).toBe(to);
  });

  it("keeps the point under the pointer, and scrolls no further than needed", () => {
    const view = zoomAt({ x: 10, y: 20, scale: 1 }, 1.2, 100, 100);
    expect((100 - view.x) / view.scale).toBeCloseTo(90);
    expect(zoomAt(view, 100, 0, 0).scale).toBe(1.6);
    const room = { width: 400, height: 300 };
    expect(reveal({ x: 0, y: 0, scale: 1 }, { x: 100, y: 100 }, room)).toEqual({ x: 0, y: 0, scale: 1 });
    expect(reveal({ x: 0, y: 0, scale: 1 }, { x: 100, y: 400 }, room).y).toBe(300 - 24 - CARD.height - 400);
    expect(fit({ width: 100, height: 100 }, room).scale).toBe(1);
    expect(fit({ width: 4000, height: 100 }, room).scale).toBe(0.25);
  });
});
