import { describe, expect, it } from "vitest";
import type { FileComparison } from "../api/client";
import { rowsOf, summaryOf, textOf } from "./compare-model";

const entry = (size: number, type = "file", mode = "0644") => ({ size, type, mode });
const comparison = (path: string, ...differences: object[]) =>
  ({ path, differences, more: 0, compared: 9 }) as unknown as FileComparison;

describe("a comparison of files", () => {
  const rows = rowsOf(
    comparison(
      "/workspace",
      { path: "/workspace/a.py", change: "modified", before: entry(52), after: entry(2048) },
      { path: "/workspace/lib", change: "added", before: null, after: entry(4096, "directory") },
      { path: "/workspace/old", change: "removed", before: entry(9), after: null },
      { path: "/workspace/run", change: "permissions", before: entry(1), after: entry(1, "file", "0755") },
      { path: "/workspace/turned", change: "modified", before: entry(1), after: entry(1, "symlink") },
    ),
  );

  it("names each path below the directory, with what is different", () => {
    expect(rows.map((row) => `${row.sign} ${row.name}: ${row.detail}`)).toEqual([
      "~ a.py: 52 B → 2 kB",
      "+ lib: directory",
      "− old: 9 B",
      "~ run: 0644 → 0755",
      "~ turned: file → symlink",
    ]);
    expect(rows.map((row) => row.isFile)).toEqual([true, false, true, true, true]);
    expect(rowsOf(comparison("/", { path: "/etc", change: "added", after: entry(1) }))[0]?.name).toBe("etc");
  });

  it("sums up", () => {
    expect(summaryOf(rows, 0)).toBe("1 added, 1 removed, 2 modified, 1 permissions");
    expect(summaryOf(rows.slice(0, 1), 7)).toBe("1 modified, and 7 more that are not listed");
    expect(summaryOf([], 0)).toBe("No differences");
  });

  it("shows text alone as text", () => {
    const of = (...bytes: number[]) => textOf(new Uint8Array(bytes).buffer);
    expect([of(), of(65, 10), of(65, 0), of(0xff, 0xfe)]).toEqual(["", "A\n", null, null]);
  });
});
