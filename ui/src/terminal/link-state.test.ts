import { describe, expect, it } from "vitest";
import { closing, retryMs } from "./link-state";

describe("how a WebSocket closed", () => {
  it.each([
    [1000, '{"exit_code":0}', { kind: "ended", exitCode: 0 }],
    [1000, '{"exit_code":137}', { kind: "ended", exitCode: 137 }],
    [1000, "", { kind: "ended", exitCode: null }],
    [1012, "The server stops", { kind: "broken", reason: "The server stops", calm: true }],
    [1012, "", { kind: "broken", reason: "The server restarts", calm: true }],
    [1006, "", { kind: "broken", reason: "The connection broke", calm: false }],
    [1001, "", { kind: "broken", reason: "The connection broke", calm: false }],
    [1011, "GUEST_ERROR: No such session", { kind: "failed", message: "No such session" }],
    [1011, "MACHINE_FAILED: The vmm ended", { kind: "broken", reason: "The vmm ended", calm: true }],
    [1011, "", { kind: "failed", message: "The terminal failed" }],
    [1011, "The terminal ended without its end", { kind: "failed", message: "The terminal ended without its end" }],
  ])("%i %s", (code, reason, meaning) => {
    expect(closing(code, reason)).toEqual(meaning);
  });
});

describe("tries", () => {
  it("come at longer and longer times, to a bound", () => {
    expect([0, 1, 2, 3, 10].map((attempt) => retryMs(attempt, false))).toEqual([250, 500, 1000, 2000, 5000]);
  });

  it("give a sandbox that goes to sleep the time to say so", () => {
    expect([0, 1].map((attempt) => retryMs(attempt, true))).toEqual([800, 500]);
  });
});
