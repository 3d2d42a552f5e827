import { expect, test } from "vitest";
import { age, bytes, count, duration, megabytes, milliseconds } from "./format";

test("sizes are in the unit people would say", () => {
  expect([512, 1024, 1536, 20480].map(megabytes)).toEqual(["512 MB", "1 GB", "1.5 GB", "20 GB"]);
  expect([0, 532, 1434, 48238592, 1 << 30, 1.25 * 2 ** 40].map(bytes)).toEqual([
    "0 B",
    "532 B",
    "1.4 kB",
    "46 MB",
    "1 GB",
    "1.3 TB",
  ]);
});

test("ages are in their largest unit and never negative", () => {
  const now = new Date("2026-01-02T00:00:00Z");
  const ago = (seconds: number) => age(new Date(now.getTime() - seconds * 1000), now);
  expect([0, 59, 60, 3599, 3600, 86399, 172800, -5].map(ago)).toEqual([
    "0 s",
    "59 s",
    "1 min",
    "59 min",
    "1 h",
    "23 h",
    "2 d",
    "0 s",
  ]);
});

test("durations are in their two largest units", () => {
  expect([0, 45, 60, 200, 18000, 187200, -1].map(duration)).toEqual([
    "0 s",
    "45 s",
    "1 min",
    "3 min 20 s",
    "5 h",
    "2 d 4 h",
    "0 s",
  ]);
  expect([34, 1234, 12317].map(milliseconds)).toEqual(["34 ms", "1.2 s", "12 s"]);
});

test("one is not many", () => {
  expect([count(1, "sandbox", "sandboxes"), count(0, "tag"), count(1200, "tag")]).toEqual([
    "1 sandbox",
    "0 tags",
    "1,200 tags",
  ]);
});
