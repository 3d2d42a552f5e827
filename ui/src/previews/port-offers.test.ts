import { expect, test, vi } from "vitest";
import type { App } from "../state/app.svelte";
import type { Happening, Listener } from "../state/events.svelte";
import { offerPorts } from "./port-offers";

function made(previews: { port: number }[] = [], tab = "terminal") {
  let listener: Listener = () => {};
  const info = vi.fn<(text: string, action?: { run: () => void }, more?: object) => void>();
  const dismiss = vi.fn();
  const put = vi.fn(() => Promise.resolve({}));
  const go = vi.fn();
  const app = {
    api: { previews: { list: () => Promise.resolve(previews), put } },
    events: { subscribe: (given: Listener) => ((listener = given), () => {}) },
    sandboxes: { byId: new Map([["sbx_1", { name: "demo" }]]) },
    router: { route: { name: "sandbox", id: "sbx_1", tab, rest: [] }, go },
    toasts: { info, dismiss, failure: vi.fn() },
  };
  offerPorts(app as unknown as App);
  const tell = async (type: string, port = 3000) => {
    listener({ type, id: "1", ts: "", sandbox_id: "sbx_1", port, command: "/usr/bin/node server.js" } as Happening);
    await Promise.resolve();
    await Promise.resolve();
  };
  return { info, dismiss, put, go, tell };
}

test("what begins to listen is offered once, and opened on a click", async () => {
  const { info, put, go, tell } = made();
  await tell("sandbox.port.opened");
  await tell("sandbox.port.opened");
  expect(info).toHaveBeenCalledOnce();
  expect(info.mock.calls[0]?.[0]).toBe("Something listens on 3000");
  expect(info.mock.calls[0]?.[2]).toMatchObject({ description: "node server.js, in demo" });
  info.mock.calls[0]?.[1]?.run();
  await vi.waitFor(() => expect(go).toHaveBeenCalledWith("#/sandboxes/sbx_1/preview/3000"));
  expect(put).toHaveBeenCalledWith("sbx_1", { port: 3000 });
});

test("the offer goes when the program does", async () => {
  const { dismiss, tell } = made();
  await tell("sandbox.port.closed");
  expect(dismiss).toHaveBeenCalledWith("port:sbx_1:3000");
});

test.each([
  ["it has a preview", [{ port: 3000 }], "terminal"],
  ["the Preview tab shows it", [], "preview"],
])("nothing is offered when %s", async (_, previews, tab) => {
  const { info, tell } = made(previews, tab);
  await tell("sandbox.port.opened");
  expect(info).not.toHaveBeenCalled();
});
