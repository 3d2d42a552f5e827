import { expect, test } from "vitest";
import { imageType, isMarkdown, lineEnding, textOf } from "./file-content";

test.each([
  ["/a/b.PNG", "image/png"],
  ["/a/b.svg", "image/svg+xml"],
  ["/a/png", null],
  ["/a.png/b", null],
])("%s as a picture: %s", (path, type) => expect(imageType(path)).toBe(type));

test.each([
  ["/README.md", true],
  ["/md", false],
])("%s as markdown: %s", (path, expected) => expect(isMarkdown(path)).toBe(expected));

test.each([
  [[0x68, 0xc3, 0xa9], "hé"],
  [[0xef, 0xbb, 0xbf, 0x61], "\ufeffa"],
  [[], ""],
  [[0x61, 0x00], null],
  [[0xff, 0xfe], null],
  [[0xc3], null],
])("the bytes %j are the text %j", (bytes, text) => expect(textOf(new Uint8Array(bytes))).toBe(text));

test.each([
  ["a\nb", "\n"],
  ["a\r\nb\r\n", "\r\n"],
  ["a\r\nb\n", "\n"],
  ["a\rb", "\n"],
  ["a\r\r\nb", "\n"],
  ["", "\n"],
])("the lines of %j end with %j", (text, ending) => expect(lineEnding(text)).toBe(ending));
