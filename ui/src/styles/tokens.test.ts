// The dark values stand twice in the sheet, since CSS cannot say "when the system or the user wants it" in one rule.
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";

const sheet = readFileSync(`${import.meta.dirname}/tokens.css`, "utf8");

function valuesOf(selector: string): string[] {
  const [, rest = ""] = sheet.split(`${selector} {`);
  return rest.slice(0, rest.indexOf("}")).match(/--[^;]+/g) ?? [];
}

test("dark is the same by the system's choice and by the user's", () => {
  const [system, user] = [':root:not([data-theme="light"])', ':root[data-theme="dark"]'].map(valuesOf);
  expect(system).not.toEqual([]);
  expect(user).toEqual(system);
});
