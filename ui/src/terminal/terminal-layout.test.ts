import { describe, expect, it } from "vitest";
import { leaf, panesOf, split } from "./split-tree";
import { EMPTY_LAYOUT, reconcile, type TerminalLayout } from "./terminal-layout";

function counter() {
  let next = 0;
  return () => `new${next++}`;
}

const layout: TerminalLayout = {
  tabs: [
    { id: "t1", name: "build", tree: split(leaf("p1"), "p1", "row", "p2", "s1"), focus: "p2" },
    { id: "t2", name: null, tree: leaf("p3"), focus: "p3" },
  ],
  panes: { p1: { session: "term_1" }, p2: { session: "term_2" }, p3: { session: "term_3" } },
  active: "t2",
};

const shape = ({ tabs, panes }: TerminalLayout) =>
  tabs.map((tab) => panesOf(tab.tree).map((pane) => panes[pane]?.session));

describe("a layout and the server's sessions", () => {
  it("stays as it is when all its sessions are there", () => {
    expect(reconcile(layout, ["term_1", "term_2", "term_3"], counter())).toEqual(layout);
  });

  it("makes a tab for each session that it does not know", () => {
    const made = reconcile(EMPTY_LAYOUT, ["term_4", "term_5"], counter());
    expect(shape(made)).toEqual([["term_4"], ["term_5"]]);
    expect(made.active).toBe(made.tabs[0]?.id);
  });

  it("takes out panes whose session ended, and moves the focus", () => {
    const made = reconcile(layout, ["term_1", "term_3"], counter());
    expect(shape(made)).toEqual([["term_1"], ["term_3"]]);
    expect(made.tabs[0]?.focus).toBe("p1");
    expect(made.tabs[0]?.name).toBe("build");
  });

  it("takes out tabs without panes, and shows another", () => {
    const made = reconcile(layout, ["term_2"], counter());
    expect(shape(made)).toEqual([["term_2"]]);
    expect(made.active).toBe("t1");
  });

  it("takes out panes that were never opened", () => {
    const unopened = { ...layout, panes: { ...layout.panes, p3: { session: null } } };
    expect(shape(reconcile(unopened, ["term_1", "term_2"], counter()))).toEqual([["term_1", "term_2"]]);
  });

  it("is empty when nothing is there", () => {
    expect(reconcile(layout, [], counter())).toEqual({ tabs: [], panes: {}, active: null });
  });
});
