import { describe, expect, it } from "vitest";
import { layoutOf, leaf, neighbour, panesOf, remove, resize, split } from "./split-tree";

// a | b, with c below b.
const three = split(split(leaf("a"), "a", "row", "b", "s1"), "b", "column", "c", "s2");

describe("a tree of panes", () => {
  it("halves the pane that is named", () => {
    expect(panesOf(three)).toEqual(["a", "b", "c"]);
    expect(layoutOf(three).panes).toEqual([
      { pane: "a", rect: { x: 0, y: 0, width: 0.5, height: 1 } },
      { pane: "b", rect: { x: 0.5, y: 0, width: 0.5, height: 0.5 } },
      { pane: "c", rect: { x: 0.5, y: 0.5, width: 0.5, height: 0.5 } },
    ]);
  });

  it("leaves a tree without the pane as it is", () => {
    expect(split(leaf("a"), "x", "row", "b", "s1")).toEqual(leaf("a"));
    expect(remove(three, "x")).toBe(three);
  });

  it.each([
    ["a", ["b", "c"]],
    ["b", ["a", "c"]],
    ["c", ["a", "b"]],
  ])("gives the place of %s to its other half", (pane, left) => {
    const rest = remove(three, pane);
    expect(rest && panesOf(rest)).toEqual(left);
  });

  it("is nothing without its last pane", () => {
    expect(remove(leaf("a"), "a")).toBeNull();
  });

  it("tells the bars and what they divide", () => {
    expect(layoutOf(three).bars).toEqual([
      { id: "s1", direction: "row", share: 0.5, around: { x: 0, y: 0, width: 1, height: 1 } },
      { id: "s2", direction: "column", share: 0.5, around: { x: 0.5, y: 0, width: 0.5, height: 1 } },
    ]);
  });

  it("moves a bar within bounds", () => {
    const share = (wanted: number) => layoutOf(resize(three, "s2", wanted)).bars[1]?.share;
    expect([0.3, -1, 2].map(share)).toEqual([0.3, 0.1, 0.9]);
  });

  it.each([
    ["a", "right", "b"],
    ["a", "left", null],
    ["b", "down", "c"],
    ["b", "left", "a"],
    ["c", "up", "b"],
    ["c", "right", null],
    ["x", "right", null],
  ] as const)("from %s to the %s is %s", (pane, side, found) => {
    expect(neighbour(three, pane, side)).toBe(found);
  });

  it("goes to the neighbour that shares most of the edge", () => {
    expect(neighbour(resize(three, "s2", 0.3), "a", "right")).toBe("c");
  });
});
