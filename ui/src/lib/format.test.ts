import { expect, test } from "vitest";
import { age, megabytes } from "./format";

test("sizes are in the unit people would say", () => {
  expect([512, 1024, 1536, 20480].map(megabytes)).toEqual(["512 MB", "1 GB", "1.5 GB", "20 GB"]);
});

test("ages are in their largest unit and never negative", () => {
  const now = new Date("2026-01-02T00:00:00Z");
  const ago = (seconds: number) => age(new Date(now.getTime() - seconds * 1000), now);
  expect([0, 59, 60, 3599, 3600, 86399, 172800, -5].map(ago)).toEqual([
    "0 s", "59 s", "1 min", "59 min", "1 h", "23 h", "2 d", "0 s",
  ]);
});
