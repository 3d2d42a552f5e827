import { describe, expect, it } from "vitest";
import { linkTarget, noticeOf, tabTitle } from "./terminal-view";

describe("the line over a pane", () => {
  it.each([
    [{ name: "live" }, "running", null],
    [{ name: "idle" }, "running", null],
    [{ name: "idle" }, "creating", { text: "The sandbox is being made…", busy: true }],
    [{ name: "asleep" }, "paused", { offer: "wake", busy: false }],
    [{ name: "asleep" }, "error", { tone: "danger", offer: "wake" }],
    [{ name: "asleep" }, "pausing", { busy: true }],
    [{ name: "ended", exitCode: 0 }, "running", { text: "The shell ended with exit code 0.", offer: "restart" }],
    [{ name: "ended", exitCode: 137 }, "running", { more: "Killed by signal 9" }],
    [{ name: "ended", exitCode: null }, "running", { text: "This shell ended while nobody looked at it." }],
    [{ name: "reconnecting", attempt: 2, reason: "No answer" }, "running", { more: "No answer", offer: "retry" }],
    [{ name: "failed", message: "Too many", requestId: "r1" }, "running", { text: "Too many", more: "Request r1" }],
  ] as const)("%o in a sandbox that is %s", (state, sandbox, notice) => {
    const made = noticeOf(state, sandbox);
    if (notice === null) expect(made).toBeNull();
    else expect(made).toMatchObject(notice);
  });
});

it("names a tab by the user's word, the program's, or its place", () => {
  expect([tabTitle("build", "vim", 2), tabTitle(null, "vim", 2), tabTitle(null, " ", 2)]).toEqual([
    "build",
    "vim",
    "Terminal 2",
  ]);
});

describe("a link in the output", () => {
  it.each([
    ["http://localhost:3000/a?b#c", { kind: "port", port: 3000, path: "/a?b#c" }],
    ["http://127.0.0.1:8080", { kind: "port", port: 8080, path: "/" }],
    ["http://0.0.0.0:80/", { kind: "port", port: 80, path: "/" }],
    ["https://[::]:8443/", { kind: "port", port: 8443, path: "/" }],
    ["https://example.com/x", { kind: "outside", url: "https://example.com/x" }],
    ["file:///etc/passwd", null],
    ["javascript:alert(1)", null],
    ["nonsense", null],
  ])("%s", (uri, target) => {
    expect(linkTarget(uri)).toEqual(target);
  });
});
