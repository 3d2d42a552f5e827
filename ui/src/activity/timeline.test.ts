import { describe, expect, it, vi } from "vitest";
import type { StreamOptions } from "../api/transport";
import { ConsoleLog } from "./console.svelte";
import { Timeline } from "./timeline.svelte";

function source() {
  const opened: Partial<StreamOptions>[] = [];
  const close = vi.fn();
  const open = (options: StreamOptions) => {
    opened.push(options);
    return { close };
  };
  return { opened, close, open };
}

describe("the timeline", () => {
  function setUp() {
    const { opened, close, open } = source();
    const timeline = new Timeline({ history: (_id, options) => open(options) }, "sbx_1");
    const say = (type: string, id: string | null) =>
      opened
        .at(-1)
        ?.onEvent?.({ event: type, id, data: { type, id, ts: "2026-01-01T00:00:00Z", sandbox_id: "sbx_1" } });
    const types = () => {
      timeline.follow(false);
      return timeline.events.map((event) => event.type);
    };
    timeline.follow(true);
    return { timeline, opened, close, say, types };
  }

  it("says that there may be more before what is remembered", () => {
    const { timeline, say, types } = setUp();
    say("gap", null);
    say("sandbox.ready", "1");
    expect([types(), timeline.older]).toEqual([["sandbox.ready"], true]);
  });

  it("marks a gap between what was seen and what comes, once", () => {
    const { say, types } = setUp();
    say("sandbox.ready", "1");
    say("gap", null);
    say("gap", null);
    say("sandbox.paused", "2");
    expect(types()).toEqual(["sandbox.ready", "gap", "sandbox.paused"]);
  });

  it("goes on where it was, and takes no event twice", () => {
    const { timeline, opened, say, types } = setUp();
    say("sandbox.ready", "1");
    timeline.follow(false);
    timeline.follow(true);
    expect(opened.map(({ lastEventId }) => lastEventId)).toEqual([undefined, "1"]);
    say("sandbox.ready", "1");
    say("sandbox.paused", "2");
    expect(types()).toEqual(["sandbox.ready", "sandbox.paused"]);
  });
});

it("the console begins anew with each connection", () => {
  const { opened, open } = source();
  const log = new ConsoleLog({ follow: (_id, _lines, options) => open(options) }, "sbx_1");
  log.follow(true);
  const connect = (...lines: string[]) => {
    opened[0]?.onState?.("open");
    for (const line of lines) opened[0]?.onEvent?.({ event: "stdout", id: null, data: { line } });
    log.log.flush();
    return log.log.entries.map((entry) => entry.text);
  };
  expect(connect("a", "b")).toEqual(["a", "b"]);
  expect(connect("b", "c")).toEqual(["b", "c"]);
});
