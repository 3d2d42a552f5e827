import { describe, expect, it } from "vitest";
import type { CoveEvent, Sandbox } from "../api/client";
import { bootText, eventText, sessionOf } from "./overview-view";
import { sandboxSnippets } from "./snippets";

const running = (facts: object) =>
  ({
    state: "running",
    persistent: true,
    always_on: false,
    timeout_sec: 300,
    timeout_remaining_ms: 150_000,
    ...facts,
  }) as Sandbox;

describe("a session", () => {
  const cases: [object, number, string, number | null, boolean][] = [
    [{}, 0, "Pauses in 2 min 30 s.", 0.5, false],
    [{ persistent: false }, 100_000, "Is destroyed in 50 s.", 50 / 300, true],
    [{}, 200_000, "Pauses now.", 0, true],
    [{ always_on: true }, 0, "Always on: no timeout is enforced.", null, false],
    [{ timeout_remaining_ms: null }, 0, "No timeout runs.", null, false],
    [{ state: "paused" }, 0, "Paused: nothing runs, disk and memory are kept. Any use wakes it.", null, false],
  ];
  it.each(cases)("%o after %i ms: %s", (facts, elapsed, text, share, soon) => {
    expect(sessionOf(running(facts), elapsed)).toEqual({ text, share, soon });
  });
});

describe("words", () => {
  const event = (type: string, more: object = {}) =>
    ({ type, id: "1", ts: "", sandbox_id: "sbx_1", ...more }) as CoveEvent;
  it("tell what happened", () => {
    expect(eventText(event("sandbox.exec.started", { command: "ls" }))).toBe("Runs ls");
    expect(eventText(event("sandbox.exec.completed", { exit_code: 1, duration_ms: 20 }))).toBe(
      "A command ended with 1 after 20 ms",
    );
    expect(eventText(event("sandbox.port.opened", { port: 3000 }))).toBe("Port 3000 opened");
    expect(eventText(event("sandbox.new_thing.done"))).toBe("New thing done");
    expect([bootText("warm"), bootText("other"), bootText(null)]).toEqual([
      "from its template's prepared machine",
      "other",
      "",
    ]);
  });

  it("name the sandbox in each snippet", () => {
    for (const snippet of sandboxSnippets("http://127.0.0.1:7400/api/v1", "sbx_1")) {
      expect(snippet.text).toContain("sbx_1");
    }
  });
});
