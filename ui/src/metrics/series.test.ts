import { describe, expect, it } from "vitest";
import type { Sample } from "../api/client";
import { bytesTop, mergeSamples, percentTop, seriesOf, toCsv } from "./series";

const START = Date.parse("2026-01-01T00:00:00Z") / 1000;
const sample = (at: number, cpu = at, disk: number | null = 7): Sample => ({
  ts: new Date((START + at) * 1000).toISOString(),
  cpu_percent: cpu,
  memory_resident_bytes: 100,
  disk_bytes: disk,
});
const relative = (times: number[]) => times.map((time) => time - START);

describe("series", () => {
  it("has a gap where samples are missing, not a line and not zero", () => {
    const series = seriesOf([sample(0), sample(5), sample(60), sample(65)], 5, START, START + 65);
    expect(relative(series.times)).toEqual([0, 5, 32.5, 60, 65]);
    expect(series.cpu).toEqual([0, 5, null, 60, 65]);
    expect(series.memory).toEqual([100, 100, null, 100, 100]);
    expect(series.gaps.map(({ from, to }) => [from - START, to - START])).toEqual([[5, 60]]);
  });

  it("forgives a late sample", () => {
    expect(seriesOf([sample(0), sample(12)], 5, START, START + 12).gaps).toEqual([]);
  });

  it("knows the gaps at both ends", () => {
    const { gaps, times } = seriesOf([sample(100), sample(105)], 5, START, START + 300);
    expect(gaps.map(({ from, to }) => [from - START, to - START])).toEqual([
      [0, 100],
      [105, 300],
    ]);
    expect(relative(times)).toEqual([100, 105]);
  });

  it("is all gap without samples", () => {
    expect(seriesOf([], 5, START, START + 300).gaps).toHaveLength(1);
  });

  it("leaves out what lies outside, and what goes back in time", () => {
    const { times } = seriesOf([sample(-5), sample(0), sample(5), sample(5), sample(400)], 5, START, START + 300);
    expect(relative(times)).toEqual([0, 5]);
  });

  it("keeps an unknown figure of a known time unknown", () => {
    expect(seriesOf([sample(0, 1, null)], 5, START, START + 5).disk).toEqual([null]);
  });
});

it("newer samples replace their like and push out the oldest", () => {
  const merged = mergeSamples([sample(0), sample(5), sample(10)], [sample(10, 99), sample(15)], START + 5);
  expect(merged.map(({ cpu_percent }) => cpu_percent)).toEqual([5, 99, 15]);
  expect(mergeSamples([sample(5)], [], START)).toHaveLength(1);
});

it("a table leaves unknown figures empty", () => {
  expect(toCsv([sample(0, 1.5, null)])).toBe(
    "time,cpu_percent,memory_resident_bytes,disk_bytes\n2026-01-01T00:00:00.000Z,1.5,100,\n",
  );
});

it("an axis ends above the largest value, at a round number", () => {
  expect([percentTop([1, null, 50], 100), percentTop([190], 100), percentTop([], 100)]).toEqual([100, 250, 100]);
  expect([bytesTop([5], 2), bytesTop([8], 2), bytesTop([null], 16)]).toEqual([8, 16, 16]);
});
