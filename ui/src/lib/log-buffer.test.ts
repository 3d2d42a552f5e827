import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { LogBuffer } from "./log-buffer.svelte";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

const texts = (buffer: LogBuffer) => buffer.entries.map((entry) => entry.text);

it("takes lines in once a frame", () => {
  const buffer = new LogBuffer();
  buffer.push("out", "a");
  buffer.push("err", "b");
  expect(buffer.entries).toEqual([]);
  vi.advanceTimersByTime(200);
  expect(buffer.entries.map(({ id, kind }) => [id, kind])).toEqual([
    [0, "out"],
    [1, "err"],
  ]);
});

it("keeps the newest lines and counts the others", () => {
  const buffer = new LogBuffer(3);
  for (const text of ["a", "b", "c", "d", "e"]) buffer.push("out", text);
  buffer.flush();
  expect([texts(buffer), buffer.dropped]).toEqual([["c", "d", "e"], 2]);
  expect(buffer.entries[0]?.id).toBe(2);
});

it("does not let a flood wait for a frame", () => {
  const buffer = new LogBuffer(2);
  for (let line = 0; line < 5; line += 1) buffer.push("out", String(line));
  expect(texts(buffer)).toEqual(["3", "4"]);
});

it("forgets all when it is cleared", () => {
  const buffer = new LogBuffer();
  buffer.push("out", "a");
  buffer.flush();
  buffer.push("out", "b");
  buffer.clear();
  vi.advanceTimersByTime(1000);
  expect(buffer.entries).toEqual([]);
});
