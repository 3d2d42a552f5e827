import { describe, expect, it } from "vitest";
import type { CoveEvent, Sandbox } from "../api/client";
import { byDay, dayWord, matches, recordedEvents, timelineOf } from "./event-view";

let count = 0;
const event = (type: string, facts: Record<string, unknown> = {}, ts = "2026-01-02T03:04:05Z"): CoveEvent => ({
  type,
  id: `e${count++}`,
  ts,
  sandbox_id: "sbx_1",
  tenant_id: "local",
  ...facts,
});
const line = (...events: CoveEvent[]) => timelineOf(events)[0];

describe("a line of the timeline", () => {
  it.each([
    ["sandbox.created", {}, "Created", "", "accent"],
    ["sandbox.paused", { state: "paused" }, "Paused", "", "neutral"],
    ["sandbox.error", { error: "Disk is full", state: "error" }, "Failed", "Disk is full", "danger"],
    ["sandbox.cold_boot", { reason: "Other CPU" }, "Booted from its disk; what ran is gone", "Other CPU", "warn"],
    ["sandbox.snapshot.ready", { snapshot_id: "snap_1" }, "Snapshot taken", "snap_1", "accent"],
    ["sandbox.port.opened", { port: 3000, command: "node" }, "Port opened", "3000 by node", "ok"],
    ["sandbox.port.closed", { port: 3000, address: "::" }, "Port closed", "3000", "neutral"],
    ["sandbox.preview.ready", { url: "http://127.1.2.3:80/" }, "Preview ready", "http://127.1.2.3:80/", "accent"],
    ["sandbox.something_new.ready", {}, "Something new ready", "", "neutral"],
  ])("of %s", (type, facts, title, detail, tone) => {
    expect(line(event(type, facts))).toMatchObject({ title, detail, tone, running: false });
  });

  it("is one for a command and its end", () => {
    const started = event("sandbox.exec.started", { exec_id: "x1", command: "make" });
    expect(line(started)).toMatchObject({ title: "Command", detail: "make", running: true });
    const ended = event("sandbox.exec.completed", { exec_id: "x1", exit_code: 0, duration_ms: 1200 });
    expect(timelineOf([started, ended])).toMatchObject([
      { title: "Command done after 1.2 s", detail: "make", running: false },
    ]);
    expect(line(started, ended)?.facts).toEqual([
      ["exec id", "x1"],
      ["command", "make"],
      ["exit code", "0"],
      ["duration ms", "1200"],
    ]);
  });

  it.each([
    [2, "Command exited 2 after 10 ms", "danger"],
    [null, "Command given up after 10 ms", "warn"],
  ])("tells an exit code of %s", (exit_code, title, tone) => {
    const ended = event("sandbox.exec.completed", { exec_id: "x2", exit_code, duration_ms: 10 });
    expect(line(ended)).toMatchObject({ title, tone, detail: "x2" });
  });

  it("marks where events may be missing", () => {
    expect(line(event("gap"))).toMatchObject({ group: "gap", title: "Events may be missing here" });
  });
});

it("puts the newest first, by the day", () => {
  const items = timelineOf([
    event("sandbox.created", {}, "2026-01-01T12:00:00"),
    event("sandbox.ready", {}, "2026-01-02T12:00:00"),
    event("sandbox.paused", {}, "2026-01-02T13:00:00"),
  ]);
  expect(byDay(items).map((day) => day.items.map((item) => item.title))).toEqual([
    ["Paused", "Ready for commands"],
    ["Created"],
  ]);
});

it("calls days as people do", () => {
  const now = new Date("2026-03-01T10:00:00");
  expect(dayWord(new Date("2026-03-01T00:01:00"), now)).toBe("Today");
  expect(dayWord(new Date("2026-02-28T23:00:00"), now)).toBe("Yesterday");
  expect(dayWord(new Date("2026-02-27T23:00:00"), now)).toContain("2026");
});

it("knows from the record when a sandbox was made, if no event says it", () => {
  const sandbox = { id: "sbx_1", created_at: "2026-01-01T00:00:00Z" } as Sandbox;
  expect(recordedEvents(sandbox, [event("sandbox.paused")])).toHaveLength(1);
  expect(recordedEvents(sandbox, [event("sandbox.created")])).toEqual([]);
});

it("finds by kind and by any text", () => {
  const item = timelineOf([event("sandbox.exec.started", { exec_id: "x1", command: "make test" })])[0];
  if (item === undefined) throw new Error("no line");
  const fits = (groups: ("life" | "commands")[], query: string) => matches(item, new Set(groups), query);
  expect([fits([], ""), fits(["commands"], "MAKE"), fits(["life"], ""), fits([], "x1"), fits([], "nope")]).toEqual([
    ...[true, true, false, true, false],
  ]);
});
