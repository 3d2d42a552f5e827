import { describe, expect, it } from "vitest";
import type { ProcessRecord } from "../api/client";
import { listensOn, ordered, parseEnv, statusOf } from "./process-view";

const process = (facts: Partial<ProcessRecord>): ProcessRecord => ({
  pid: 100,
  command: "sleep 9",
  state: facts.status ?? "exited",
  status: "exited",
  output_from: 0,
  output_to: 0,
  stdin_open: false,
  ...facts,
});

describe("a process's status", () => {
  it.each([
    [{ status: "running" }, "Running", "ok"],
    [{ exit_code: 0 }, "Exited 0", "neutral"],
    [{ exit_code: 2 }, "Exited 2", "danger"],
    [{ exit_code: 124 }, "Timed out (124)", "danger"],
    [{ exit_code: 137, signal: 9 }, "Killed by SIGKILL", "warn"],
    [{ exit_code: 159, signal: 31 }, "Killed by signal 31", "warn"],
    [{ exit_code: null }, "Ended", "neutral"],
  ])("%o", (facts, word, tone) => {
    expect(statusOf(process(facts))).toEqual({ word, tone });
  });
});

it("puts those that run first, and the newest before the older", () => {
  const list = [
    process({ pid: 1, started_at: "2026-01-01T00:00:00Z" }),
    process({ pid: 2, started_at: "2026-01-02T00:00:00Z" }),
    process({ pid: 3, status: "running", started_at: "2026-01-01T00:00:00Z" }),
    process({ pid: 4 }),
  ];
  expect(ordered(list).map(({ pid }) => pid)).toEqual([3, 2, 1, 4]);
});

describe("an environment as text", () => {
  it("is one variable a line", () => {
    expect(parseEnv("A=1\n\n# note\nexport B_2 = \"two words\"\nC='x=y'\nD=")).toEqual({
      A: "1",
      B_2: "two words",
      C: "x=y",
      D: "",
    });
  });

  it.each(["novalue", "=x", "1A=x", "A B=x"])("cannot be %j", (text) => {
    expect(() => parseEnv(`OK=1\n${text}`)).toThrow("Line 2 is not NAME=value");
  });
});

it.each([
  ["0.0.0.0", 3000, "0.0.0.0:3000"],
  ["::1", 80, "[::1]:80"],
])("a listener on %s port %i", (address, port, text) => {
  expect(listensOn({ address, port })).toBe(text);
});
