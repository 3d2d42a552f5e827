import { describe, expect, it } from "vitest";
import { parseAnsi } from "../lib/ansi";
import { linesIn, mark, rowStarts } from "./log-rows";

describe("rows of lines", () => {
  const texts = ["", "12345", "1234567890123", "漢字漢字漢字", "x"];

  it("are one each when nothing wraps", () => {
    expect([...rowStarts(texts, null)]).toEqual([0, 1, 2, 3, 4, 5]);
  });

  it("are as many as the text needs when it wraps", () => {
    expect([...rowStarts(texts, 5)]).toEqual([0, 1, 2, 5, 8, 9]);
  });

  it.each([
    [0, 1, 0, 2],
    [3, 3, 2, 3],
    [4, 6, 2, 4],
    [8, 100, 4, 5],
  ])("from row %i to %i are lines %i to before %i", (top, bottom, from, to) => {
    expect(linesIn(rowStarts(texts, 5), top, bottom)).toEqual({ from, to });
  });

  it("are none of nothing", () => {
    expect(linesIn(rowStarts([], 80), 0, 50)).toEqual({ from: 0, to: 0 });
  });
});

describe("marks", () => {
  const shown = (line: string, query: string) =>
    mark(parseAnsi(line), query).map(({ text, marked }) => (marked ? `[${text}]` : text));

  it.each([
    ["an error here", "Error", ["an ", "[error]", " here"]],
    ["aaaa", "aa", ["[aa]", "[aa]"]],
    ["none", "x", ["none"]],
    ["none", "", ["none"]],
    ["e\x1b[31mrr\x1b[0mor!", "error", ["[e]", "[rr]", "[or]", "!"]],
  ])("%j by %j", (line, query, pieces) => {
    expect(shown(line, query)).toEqual(pieces);
  });
});
