import { expect, test } from "vitest";
import { checkVersions, judge, type Version } from "./save-conflict";

const old: Version = { modified_at: "2026-01-02T03:04:05.000006Z", size: 3 };
const later: Version = { modified_at: "2026-01-02T03:04:06.000000Z", size: 3 };

test.each<[string, Version | null, Version | null, boolean, string]>([
  ["untouched", old, { ...old }, false, "save"],
  ["written", old, later, false, "read"],
  ["longer at the same time", old, { ...old, size: 4 }, false, "read"],
  ["new, and nobody made it meanwhile", null, null, false, "save"],
  ["new, but somebody made it meanwhile", null, old, false, "read"],
  ["removed", old, null, false, "missing"],
  ["behind a link", old, old, true, "read"],
])("%s", (_, base, now, link, expected) => expect(checkVersions(base, now, link)).toBe(expected));

test.each<[string | null, string, string | null, string]>([
  ["a", "b", "a", "save"],
  ["a", "b", "c", "conflict"],
  ["a", "b", "b", "same"],
  ["a", "b", null, "conflict"],
  [null, "b", "c", "conflict"],
])("base %j, mine %j, theirs %j: %s", (base, mine, theirs, expected) =>
  expect(judge(base, mine, theirs)).toBe(expected),
);
