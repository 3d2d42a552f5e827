import { expect, test } from "vitest";
import { backoffMs, FrameParser, runStream, type Frame, type StreamState } from "./sse";

test("frames come out whole, wherever the bytes were cut", () => {
  const text = ': open\n\nid: 1\nevent: a\ndata: {"x":1}\n\nevent: b\ndata: [\ndata: 2]\n\n';
  for (let at = 0; at <= text.length; at += 1) {
    const parser = new FrameParser();
    const frames = [...parser.push(text.slice(0, at)), ...parser.push(text.slice(at))];
    expect(frames).toEqual([
      { event: "a", id: "1", data: { x: 1 } },
      { event: "b", id: null, data: [2] },
    ]);
  }
});

test("a frame that is no JSON is text, one without data is none", () => {
  expect(new FrameParser().push("data: plain\n\nevent: x\n\n")).toEqual([
    { event: "message", id: null, data: "plain" },
  ]);
});

test("waits double, up to a bound", () => {
  expect([0, 1, 2, 10].map((attempt) => backoffMs(attempt, 1))).toEqual([250, 500, 1000, 5000]);
  expect(backoffMs(0, 0)).toBe(125);
});

test("a stream comes back from its last event, and ends when it is refused", async () => {
  const asked: (string | null)[] = [];
  const frames: Frame[] = [];
  const states: StreamState[] = [];
  await new Promise<void>((resolve) => {
    runStream(
      (lastEventId) => {
        asked.push(lastEventId);
        if (asked.length === 1) return Promise.resolve(new Response("id: 7\nevent: e\ndata: 1\n\n"));
        return Promise.reject(Object.assign(new Error("gone"), { name: "ApiError" }));
      },
      {
        onEvent: (frame) => frames.push(frame),
        onState: (state) => {
          states.push(state);
          if (states.length === 4) resolve();
        },
        reconnect: true,
      },
    );
  });
  expect(asked).toEqual([null, "7"]);
  expect(frames.map((frame) => frame.id)).toEqual(["7"]);
  expect(states).toEqual(["connecting", "open", "reconnecting", "reconnecting"]);
});
