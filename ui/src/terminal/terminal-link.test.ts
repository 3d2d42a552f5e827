import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { ApiError } from "../api/errors";
import { TerminalLink, type LinkHost } from "./terminal-link.svelte";

/** A WebSocket whose other end is the test. */
class FakeSocket {
  binaryType = "blob";
  sent: string[] = [];
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: ArrayBuffer }) => void) | null = null;
  onclose: ((event: { code: number; reason: string }) => void) | null = null;
  closed = false;
  send(data: Uint8Array | string) {
    this.sent.push(typeof data === "string" ? data : new TextDecoder().decode(data));
  }
  close() {
    this.closed = true;
  }
  say(text: string) {
    this.onmessage?.({ data: new TextEncoder().encode(text).buffer as ArrayBuffer });
  }
}

function setUp(session: string | null, { state = "running", sessions = ["term_1"] } = {}) {
  const sockets: FakeSocket[] = [];
  const facts = { state, sessions };
  const host = {
    open: vi.fn(async () => "term_1"),
    attach: vi.fn(async () => {
      const socket = new FakeSocket();
      sockets.push(socket);
      return socket as unknown as WebSocket;
    }),
    sessions: vi.fn(async () => facts.sessions),
    sandboxState: vi.fn(async () => facts.state),
  } satisfies LinkHost;
  const link = new TerminalLink(host, session);
  const output: string[] = [];
  const opened: string[] = [];
  link.events = {
    onOutput: (bytes, anew) =>
      output.push(`${anew ? `${anew.cols}x${anew.rows}:` : ""}${new TextDecoder().decode(bytes)}`),
    onSession: (id) => opened.push(id),
  };
  return { link, host, sockets, facts, output, opened };
}

const SIZE = { cols: 100, rows: 30 };
const settle = () => vi.advanceTimersByTimeAsync(0);

async function live(session: string | null = "term_1") {
  const all = setUp(session);
  all.link.sandboxIs("running");
  all.link.resize(SIZE);
  await settle();
  all.sockets[0]?.onopen?.();
  return all;
}

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

describe("TerminalLink", () => {
  it("attaches with the size of the pane and passes bytes on", async () => {
    const { link, host, sockets, output } = await live();
    expect(host.open).not.toHaveBeenCalled();
    expect(host.attach).toHaveBeenCalledWith("term_1", SIZE);
    expect(link.state.name).toBe("live");
    sockets[0]?.say("$ ");
    sockets[0]?.say("ls");
    expect(output).toEqual(["100x30:$ ", "ls"]);
    link.send("x");
    link.resize({ cols: 80, rows: 24 });
    link.resize({ cols: 80, rows: 24 });
    expect(sockets[0]?.sent).toEqual(["x", '{"type":"resize","cols":80,"rows":24}']);
  });

  it("opens a session first when there is none, and keeps what was typed early", async () => {
    const { link, host, sockets, opened } = setUp(null);
    link.sandboxIs("running");
    link.resize(SIZE);
    expect(link.state.name).toBe("opening");
    link.send("ls\r");
    await settle();
    expect(host.open).toHaveBeenCalledWith(SIZE);
    expect(opened).toEqual(["term_1"]);
    sockets[0]?.onopen?.();
    expect(sockets[0]?.sent).toEqual(["ls\r"]);
  });

  it("lets what was drawn for the old size be drawn before it tells a new one", async () => {
    const { link, sockets } = setUp("term_1");
    link.sandboxIs("running");
    link.resize(SIZE);
    link.resize({ cols: 90, rows: 20 });
    await settle();
    sockets[0]?.onopen?.();
    expect(sockets[0]?.sent).toEqual([]);
    await vi.advanceTimersByTimeAsync(1_000);
    expect(sockets[0]?.sent).toEqual(['{"type":"resize","cols":90,"rows":20}']);
  });

  it("does not wake a sandbox that sleeps", async () => {
    const { link, host } = setUp("term_1");
    link.sandboxIs("paused");
    link.resize(SIZE);
    await vi.advanceTimersByTimeAsync(60_000);
    expect(host.attach).not.toHaveBeenCalled();
    link.sandboxIs("running");
    await settle();
    expect(host.attach).toHaveBeenCalledOnce();
  });

  it("comes back after a break, later and later", async () => {
    const { link, host, sockets } = await live();
    sockets[0]?.onclose?.({ code: 1006, reason: "" });
    expect(link.state).toMatchObject({ name: "reconnecting", attempt: 0 });
    await vi.advanceTimersByTimeAsync(250);
    expect(host.attach).toHaveBeenCalledTimes(2);
    sockets[1]?.onclose?.({ code: 1006, reason: "" });
    expect(link.state).toMatchObject({ name: "reconnecting", attempt: 1 });
    await vi.advanceTimersByTimeAsync(499);
    expect(host.attach).toHaveBeenCalledTimes(2);
    await vi.advanceTimersByTimeAsync(1);
    sockets[2]?.onopen?.();
    expect(link.state.name).toBe("live");
  });

  it("stays away from a sandbox that was paused, and comes back with it", async () => {
    const { link, host, sockets, facts } = await live();
    facts.state = "paused";
    sockets[0]?.onclose?.({ code: 1012, reason: "Sandbox was paused" });
    await vi.advanceTimersByTimeAsync(60_000);
    expect(link.state.name).toBe("asleep");
    expect(host.attach).toHaveBeenCalledOnce();
    facts.state = "running";
    link.sandboxIs("running");
    await settle();
    expect(host.attach).toHaveBeenCalledTimes(2);
  });

  it("waits for a server that does not answer", async () => {
    const { link, host, sockets } = await live();
    host.sandboxState.mockRejectedValueOnce(new ApiError({ status: 0, code: "UNREACHABLE", message: "No answer" }));
    sockets[0]?.onclose?.({ code: 1006, reason: "" });
    await vi.advanceTimersByTimeAsync(250);
    expect(link.state).toMatchObject({ name: "reconnecting", attempt: 1, reason: "No answer" });
    await vi.advanceTimersByTimeAsync(500);
    expect(host.attach).toHaveBeenCalledTimes(2);
  });

  it("tells the exit code, and starts again", async () => {
    const { link, host, sockets } = await live();
    sockets[0]?.onclose?.({ code: 1000, reason: '{"exit_code":3}' });
    expect(link.state).toEqual({ name: "ended", exitCode: 3 });
    link.restart();
    await settle();
    expect(host.open).toHaveBeenCalledOnce();
  });

  it("knows that a session ended while it was away", async () => {
    const { link, sockets, facts } = await live();
    facts.sessions = [];
    sockets[0]?.onclose?.({ code: 1006, reason: "" });
    await vi.advanceTimersByTimeAsync(250);
    expect(link.state).toEqual({ name: "ended", exitCode: null });
  });

  it("shows why a session cannot be opened", async () => {
    const { link, host } = setUp(null);
    host.open.mockRejectedValueOnce(
      new ApiError({ status: 429, code: "TOO_MANY", message: "16 terminals are open", requestId: "req_1" }),
    );
    link.sandboxIs("running");
    link.resize(SIZE);
    await settle();
    expect(link.state).toEqual({ name: "failed", message: "16 terminals are open", requestId: "req_1" });
  });

  it("is silent once it is disposed of", async () => {
    const { link, sockets, output } = await live();
    link.dispose();
    expect(sockets[0]?.closed).toBe(true);
    sockets[0]?.say("late");
    sockets[0]?.onclose?.({ code: 1006, reason: "" });
    await vi.advanceTimersByTimeAsync(10_000);
    expect(output).toEqual([]);
    expect(sockets).toHaveLength(1);
  });
});
