import { expect, test } from "vitest";
import { choose, score, type PaletteGroup, type PaletteItem } from "./palette-items";

const item = (label: string, note?: string): PaletteItem => ({
  id: label,
  label,
  ...(note === undefined ? {} : { note }),
  icon: (() => {}) as unknown as PaletteItem["icon"],
  run: () => {},
});

test.each([
  ["Pause", "pa", 4],
  ["my-web", "web", 3],
  ["Unpause", "pau", 2],
  ["Take snapshot", "tsn", 1],
  ["Pause", "xyz", 0],
  ["Pause", "", 1],
])("%s for %s", (text, query, value) => {
  expect(score(text, query)).toBe(value);
});

test("the best come first, an id finds its sandbox, empty groups go", () => {
  const groups: PaletteGroup[] = [
    { title: "One", items: [item("Unpause"), item("Pause")] },
    { title: "Two", items: [item("web", "Running sbx_abc")] },
  ];
  expect(choose(groups, "pause").map((group) => group.items.map(({ label }) => label))).toEqual([["Pause", "Unpause"]]);
  expect(choose(groups, "sbx_abc").map((group) => group.title)).toEqual(["Two"]);
  expect(choose(groups, "").length).toBe(2);
});
