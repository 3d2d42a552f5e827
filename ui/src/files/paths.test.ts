import { describe, expect, test } from "vitest";
import {
  afterMove,
  dropInto,
  isWithin,
  join,
  nameOf,
  nameProblem,
  parentOf,
  shortLabels,
  steps,
  topmost,
  typedPath,
} from "./paths";

describe("paths", () => {
  test.each([
    ["/workspace/a.txt", "a.txt", "/workspace"],
    ["/a", "a", "/"],
    ["/", "/", "/"],
  ])("%s has a name and a parent", (path, name, parent) => {
    expect([nameOf(path), parentOf(path)]).toEqual([name, parent]);
    if (path !== "/") expect(join(parent, name)).toBe(path);
  });

  test.each([
    ["/w/a", "/w", true],
    ["/w", "/w", true],
    ["/wide", "/w", false],
    ["/w", "/w/a", false],
    ["/w", "/", true],
  ])("%s within %s: %s", (path, directory, expected) => expect(isWithin(path, directory)).toBe(expected));

  test.each([
    ["/w/a/b", "/w/a", "/x", "/x/b"],
    ["/w/ab", "/w/a", "/x", "/w/ab"],
    ["/w/a", "/w/a", "/x", "/x"],
  ])("%s after %s became %s", (path, from, to, expected) => expect(afterMove(path, from, to)).toBe(expected));

  test.each([
    ["", null],
    ["  ", null],
    ["/etc/", "/etc"],
    ["src", "/workspace/src"],
    ["../etc//./x", "/etc/x"],
    ["/../..", "/"],
    ["~/.bashrc", "/root/.bashrc"],
  ])("typed %j is %j", (typed, expected) => expect(typedPath(typed, "/workspace")).toBe(expected));

  test.each([
    ["a b#1.py", false, true],
    ["", false, false],
    ["..", false, false],
    ["a/b", false, false],
    ["a/b", true, true],
    ["a//b", true, false],
    ["a/../b", true, false],
    ["é".repeat(128), false, false],
    ["é".repeat(127), false, true],
  ])("the name %j (slashes %s) is fine: %s", (name, slashes, fine) => {
    expect(nameProblem(name, { slashes }) === null).toBe(fine);
  });

  test("what lies in another one is taken with it", () => {
    expect(topmost(["/a", "/a/b", "/ab", "/c/d"])).toEqual(["/a", "/ab", "/c/d"]);
  });

  test.each([
    [["/w/a"], "/w/b", [{ from: "/w/a", to: "/w/b/a" }]],
    [["/w/a"], "/w", null],
    [["/w/a"], "/w/a", null],
    [["/w/a"], "/w/a/b", null],
    [["/w/a/x", "/w/y"], "/w", [{ from: "/w/a/x", to: "/w/x" }]],
  ])("%j dropped on %s", (paths, directory, expected) => expect(dropInto(paths, directory)).toEqual(expected));

  test("steps lead from the root", () => {
    expect(steps("/a/b")).toEqual([
      { name: "/", path: "/" },
      { name: "a", path: "/a" },
      { name: "b", path: "/a/b" },
    ]);
  });

  test("files of one name are told apart by as little as is needed", () => {
    const labels = shortLabels(["/w/a/x/index.ts", "/w/b/x/index.ts", "/w/main.ts"]);
    expect(labels.get("/w/a/x/index.ts")).toEqual({ name: "index.ts", hint: "a/x" });
    expect(labels.get("/w/main.ts")).toEqual({ name: "main.ts", hint: "" });
  });
});
