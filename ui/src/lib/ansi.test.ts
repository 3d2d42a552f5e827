import { describe, expect, it } from "vitest";
import { parseAnsi, plainText } from "./ansi";

const looks = (line: string) =>
  parseAnsi(line).map(({ text, colour, bold, faint }) => [text, colour, bold ? "bold" : faint ? "faint" : ""]);

describe("a line of output", () => {
  it.each([
    ["plain", [["plain", null, ""]]],
    ["", []],
    [
      "\x1b[31mred\x1b[0m and not",
      [
        ["red", 1, ""],
        [" and not", null, ""],
      ],
    ],
    ["\x1b[1;92mok\x1b[m", [["ok", 10, "bold"]]],
    [
      "\x1b[38;5;4mblue\x1b[38;5;200mstill\x1b[39mnone",
      [
        ["blue", 4, ""],
        ["still", 4, ""],
        ["none", null, ""],
      ],
    ],
    ["\x1b[38;2;1;2;3;1mbold", [["bold", null, "bold"]]],
    [
      "\x1b[2mdim\x1b[22m not",
      [
        ["dim", null, "faint"],
        [" not", null, ""],
      ],
    ],
    ["\x1b]0;title\x07text\x1b[2K\x1b(B", [["text", null, ""]]],
    ["10%\r50%\r100%\r", [["100%", null, ""]]],
    ["a\tb\x07", [["a        b", null, ""]]],
  ])("%j", (line, pieces) => {
    expect(looks(line)).toEqual(pieces);
  });

  it("has a text without looks", () => {
    expect(plainText("\x1b[31mre\x1b[1md\x1b[0m!\r")).toBe("red!");
  });
});
