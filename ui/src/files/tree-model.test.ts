import { describe, expect, test } from "vitest";
import type { FileChange, FileEntry } from "../api/files";
import { effectOf, movedKeys, rowsOf, sorted, stepOf, typeAhead, type Directory, type TreeState } from "./tree-model";

function entry(path: string, type = "file"): FileEntry {
  const name = path.slice(path.lastIndexOf("/") + 1);
  return {
    name,
    path,
    size: 1,
    is_dir: type === "directory",
    type,
    mode: "0644",
    is_symlink: type === "symlink",
    modified_at: null,
  };
}

function loaded(...entries: FileEntry[]): Directory {
  return { entries: sorted(entries), loading: false, error: null };
}

function state(more: Partial<TreeState> = {}): TreeState {
  return {
    root: "/w",
    directories: new Map([
      ["/w", loaded(entry("/w/b.txt"), entry("/w/.env"), entry("/w/a", "directory"), entry("/w/link", "symlink"))],
      ["/w/a", loaded(entry("/w/a/x"))],
      ["/w/link", loaded(entry("/w/link/y"))],
    ]),
    expanded: new Set(),
    showHidden: false,
    directoryLinks: new Set(),
    ...more,
  };
}

const drawn = (of: TreeState) =>
  rowsOf(of).map((row) => `${"  ".repeat(row.depth)}${row.kind === "entry" ? row.entry.name : `(${row.text})`}`);

describe("rows", () => {
  test("directories come first and numbers count", () => {
    const names = sorted([entry("/f10"), entry("/f2"), entry("/F1"), entry("/z", "directory")]).map((it) => it.name);
    expect(names).toEqual(["z", "F1", "f2", "f10"]);
  });

  test("hidden files and closed folders are not drawn", () => {
    expect(drawn(state())).toEqual(["a", "b.txt", "link"]);
    expect(drawn(state({ showHidden: true, expanded: new Set(["/w/a"]) }))).toEqual([
      "a",
      "  x",
      ".env",
      "b.txt",
      "link",
    ]);
  });

  test("a link opens when it leads to a directory", () => {
    const open = { expanded: new Set(["/w/link"]) };
    expect(drawn(state(open))).toEqual(["a", "b.txt", "link"]);
    expect(drawn(state({ ...open, directoryLinks: new Set(["/w/link"]) }))).toEqual(["a", "b.txt", "link", "  y"]);
  });

  test("an open folder says that it is empty, or that all in it is hidden", () => {
    const directories = new Map([
      ["/w", loaded(entry("/w/a", "directory"), entry("/w/b", "directory"))],
      ["/w/a", loaded()],
      ["/w/b", loaded(entry("/w/b/.git", "directory"))],
    ]);
    expect(drawn(state({ directories, expanded: new Set(["/w/a", "/w/b"]) }))).toEqual([
      "a",
      "  (Empty)",
      "b",
      "  (1 hidden)",
    ]);
  });
});

describe("a watch", () => {
  const change = (event: string, path: string, more: Partial<FileChange> = {}): FileChange => ({
    event,
    type: event,
    path,
    old_path: null,
    is_dir: false,
    size_bytes: null,
    ...more,
  });

  test.each([
    [change("created", "/w/a/x"), { stale: ["/w/a"] }],
    [change("modified", "/w/x"), { stale: ["/w"] }],
    [change("deleted", "/w/a"), { stale: ["/w"], forget: ["/w/a"] }],
    [
      change("renamed", "/w/b/x", { old_path: "/w/a/x" }),
      { stale: ["/w/a", "/w/b"], moved: { from: "/w/a/x", to: "/w/b/x" } },
    ],
    [change("renamed", "/w/y", { old_path: "/w/x" }), { stale: ["/w"], moved: { from: "/w/x", to: "/w/y" } }],
    [change("overflow", "/w"), { all: true }],
    [change("limit", "/w/n", { directories: 3 }), { unwatched: 3 }],
  ])("%j", (given, expected) => expect(effectOf(given)).toMatchObject(expected));

  test("open folders keep their place when one above them is renamed", () => {
    expect(movedKeys(["/w/a", "/w/a/b", "/w/ab"], "/w/a", "/w/z")).toEqual([
      { before: "/w/a", after: "/w/z" },
      { before: "/w/a/b", after: "/w/z/b" },
    ]);
  });
});

describe("keys", () => {
  const rows = rowsOf(state({ expanded: new Set(["/w/a"]) })); // a, x, b.txt, link
  test.each([
    ["ArrowDown", 0, { to: 1 }],
    ["ArrowDown", 3, { to: 3 }],
    ["ArrowUp", 0, { to: 0 }],
    ["End", 0, { to: 3 }],
    ["ArrowRight", 0, { to: 1 }],
    ["ArrowRight", 2, null],
    ["ArrowLeft", 0, { collapse: "/w/a" }],
    ["ArrowLeft", 1, { to: 0 }],
    ["ArrowLeft", 2, null],
    ["x", 0, null],
  ])("%s at %i", (key, at, expected) => expect(stepOf(key, rows, at)).toEqual(expected));

  test("a closed folder opens first", () =>
    expect(stepOf("ArrowRight", rowsOf(state()), 0)).toEqual({ expand: "/w/a" }));

  test("typing goes to the next name that begins so, around the end", () => {
    expect(typeAhead(rows, 0, "l")).toBe(3);
    expect(typeAhead(rows, 3, "a")).toBe(0);
    expect(typeAhead(rows, 2, "b.")).toBe(2);
    expect(typeAhead(rows, 0, "q")).toBe(-1);
  });
});
