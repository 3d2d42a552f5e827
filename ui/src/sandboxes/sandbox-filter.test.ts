import { expect, test } from "vitest";
import { testSandbox } from "../test-sandbox";
import { countGroups, filterSandboxes, FIRST_VIEW, tagsOf, type ListView } from "./sandbox-filter";

const items = [
  testSandbox({ id: "sbx_a", name: "web", tags: ["prod", "eu"], created_at: "2026-01-01T00:00:00Z", memory_mb: 4096 }),
  testSandbox({ id: "sbx_b", name: "Worker", state: "paused", tags: ["prod"], created_at: "2026-01-03T00:00:00Z" }),
  testSandbox({ id: "sbx_c", state: "error", template_id: "node", created_at: "2026-01-02T00:00:00Z" }),
  testSandbox({ id: "sbx_d", name: "api", state: "pausing", started_at: null, total_runtime_sec: null }),
];
const ids = (view: Partial<ListView>) =>
  filterSandboxes(items, { ...FIRST_VIEW, ...view }).map((item) => item.id.slice(4));

test.each<[Partial<ListView>, string[]]>([
  [{}, ["b", "c", "a", "d"]],
  [{ text: "WEB" }, ["a"]],
  [{ text: "sbx_b" }, ["b"]],
  [{ text: "prod eu" }, ["a"]],
  [{ text: "node" }, ["c"]],
  [{ text: "nothing" }, []],
  [{ state: "running" }, ["a"]],
  [{ state: "other" }, ["d"]],
  [{ tag: "prod" }, ["b", "a"]],
  [{ sort: "name", descending: false }, ["d", "c", "a", "b"]],
  [{ sort: "state", descending: false }, ["a", "d", "b", "c"]],
  [{ sort: "size" }, ["a", "b", "c", "d"]],
])("%o", (view, expected) => {
  expect(ids(view)).toEqual(expected);
});

test("groups and tags are counted", () => {
  expect(countGroups(items)).toEqual({ all: 4, running: 1, paused: 1, error: 1, other: 1 });
  expect(tagsOf(items)).toEqual(["eu", "prod"]);
});

test("two thousand are filtered and sorted in a few milliseconds", () => {
  const many = Array.from({ length: 2000 }, (_, at) => testSandbox({ id: `sbx_${at}`, name: `box ${at % 97}` }));
  filterSandboxes(many, { ...FIRST_VIEW, text: "box 1" });
  const began = performance.now();
  const found = filterSandboxes(many, { ...FIRST_VIEW, text: "box 13", sort: "name" });
  expect(found.length).toBeGreaterThan(10);
  expect(performance.now() - began).toBeLessThan(50);
});
