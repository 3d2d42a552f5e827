import { describe, expect, it, vi } from "vitest";
import type { Api } from "../api/client";
import type { Frame, StreamOptions } from "../api/transport";
import { ProcessOutput } from "./process-output.svelte";

function setUp() {
  const opened: StreamOptions[] = [];
  const close = vi.fn();
  const onExit = vi.fn();
  const api = {
    output: (_id: string, _pid: number, options: StreamOptions) => {
      opened.push(options);
      return { close };
    },
  } as unknown as Api["processes"];
  const awake = vi.fn(async () => true);
  const output = new ProcessOutput({ api, sandboxId: "sbx_1", pid: 7, awake }, onExit);
  const say = (event: string, data: unknown, id: string | null = null) =>
    opened.at(-1)?.onEvent({ event, data, id } satisfies Frame);
  const lines = () => {
    output.log.flush();
    return output.log.entries.map(({ kind, text }) => `${kind}: ${text}`);
  };
  return { output, opened, close, onExit, say, lines, awake };
}

describe("the output of a process", () => {
  it("is lines of both streams, gaps, and an end", () => {
    const { output, say, lines, close, onExit } = setUp();
    output.follow(true);
    say("stdout", { stream: "stdout", line: "ready" }, "6");
    say("gap", { event: "gap", from: 6, to: 2054 }, "2054");
    say("stderr", { stream: "stderr", line: "oops" }, "2060");
    say("exit", { event: "exit", exit_code: 3, duration_ms: 12 });
    expect(lines()).toEqual(["out: ready", "gap: 2 kB missing: it was overwritten before it was read", "err: oops"]);
    expect(output.exit?.exit_code).toBe(3);
    expect([close, onExit].map((each) => each.mock.calls.length)).toEqual([1, 1]);
  });

  it("goes on from its cursor", () => {
    const { output, opened, say } = setUp();
    output.follow(true);
    output.follow(true);
    say("stdout", { stream: "stdout", line: "a" }, "2");
    output.follow(false);
    output.follow(true);
    expect(opened.map(({ lastEventId }) => lastEventId)).toEqual([null, "2"]);
  });

  it("is not asked for again after the end", () => {
    const { output, opened, say } = setUp();
    output.follow(true);
    say("exit", { event: "exit", exit_code: 0, duration_ms: 1 });
    output.follow(true);
    expect(opened).toHaveLength(1);
  });

  it("comes back after a break, but not to a sandbox that sleeps", async () => {
    vi.useFakeTimers();
    const { output, opened, awake } = setUp();
    output.follow(true);
    awake.mockResolvedValueOnce(false);
    opened[0]?.onState?.("closed");
    await vi.advanceTimersByTimeAsync(5_000);
    expect([awake.mock.calls.length, opened.length]).toEqual([1, 1]);
    output.follow(true);
    opened[1]?.onState?.("closed");
    await vi.advanceTimersByTimeAsync(5_000);
    expect(opened).toHaveLength(3);
    vi.useRealTimers();
  });

  it("does not come back by itself after an error, which may be that the sandbox sleeps", () => {
    const { output, say, close } = setUp();
    output.follow(true);
    say("error", { error: { code: "SANDBOX_INTERRUPTED", message: "It was paused" } });
    expect(output.error?.message).toBe("It was paused");
    expect(close).toHaveBeenCalledOnce();
  });
});
