import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { StreamOptions } from "../api/transport";
import { Events } from "./events.svelte";
import { Collection, Resource } from "./resource.svelte";

let options: StreamOptions;
let events: Events;

function happens(sandbox_id: string, type = "sandbox.paused", id = "01") {
  options.onEvent({ event: type, id, data: { type, id, ts: "", sandbox_id } });
}

beforeEach(() => {
  vi.useFakeTimers();
  events = new Events({
    stream: (given) => {
      options = given;
      return { close: () => {} };
    },
  });
  events.start();
});

afterEach(() => {
  vi.useRealTimers();
});

test("a resource is fetched again after what makes it stale, once for a burst", async () => {
  const fetch = vi.fn(() => Promise.resolve(fetch.mock.calls.length));
  const resource = new Resource({ fetch, events, staleOn: (event) => event.type === "sandbox.paused" });
  happens("a");
  await vi.advanceTimersByTimeAsync(100);
  expect(fetch).not.toHaveBeenCalled();
  await resource.refresh();
  for (const id of ["a", "b", "c"]) happens(id);
  happens("a", "sandbox.ready");
  await vi.advanceTimersByTimeAsync(100);
  expect([fetch.mock.calls.length, resource.data]).toEqual([2, 2]);
});

test("a failure is kept beside the old data, and goes with the next success", async () => {
  let fails = false;
  const resource = new Resource({ fetch: () => (fails ? Promise.reject(new Error("no")) : Promise.resolve("old")) });
  await resource.refresh();
  fails = true;
  await resource.refresh();
  expect([resource.data, resource.error?.message]).toEqual(["old", "no"]);
  fails = false;
  await resource.refresh();
  expect(resource.error).toBeNull();
});

function collection(records: Map<string, string>) {
  const list = vi.fn(() => Promise.resolve([...records].map(([id, state]) => ({ id, state }))));
  const get = vi.fn((id: string) => {
    const state = records.get(id);
    return Promise.resolve(state === undefined ? null : { id, state });
  });
  const store = new Collection({
    ...{ list, get, events },
    idOf: (item) => item.id,
    changedBy: (event) => event.sandbox_id,
    keeps: (item) => item.state !== "destroyed",
  });
  return { store, list, get };
}

test("an event fetches its record alone; many fetch the list; what is gone leaves", async () => {
  const records = new Map([["a", "running"], ["b", "running"]]); // prettier-ignore
  const { store, list, get } = collection(records);
  await store.refresh();
  records.set("a", "paused");
  records.delete("b");
  happens("a");
  happens("b", "sandbox.destroyed");
  await vi.advanceTimersByTimeAsync(100);
  expect(store.items).toEqual([{ id: "a", state: "paused" }]);
  expect([list.mock.calls.length, get.mock.calls.length]).toEqual([1, 2]);
  for (let at = 0; at < 20; at += 1) records.set(`n${at}`, "running");
  for (const id of records.keys()) happens(id);
  await vi.advanceTimersByTimeAsync(100);
  expect([store.items?.length, list.mock.calls.length, get.mock.calls.length]).toEqual([21, 2, 2]);
});

test("a gap, and an opening without a last event, fetch everything", async () => {
  const { store, list } = collection(new Map([["a", "running"]]));
  options.onState?.("open");
  await vi.advanceTimersByTimeAsync(100);
  expect(store.byId.get("a")).toEqual({ id: "a", state: "running" });
  happens("a");
  options.onState?.("reconnecting");
  options.onState?.("open");
  await vi.advanceTimersByTimeAsync(100);
  expect(list).toHaveBeenCalledTimes(1);
  options.onEvent({ event: "gap", id: null, data: { type: "gap", reason: "unknown_id" } });
  await vi.advanceTimersByTimeAsync(100);
  expect(list).toHaveBeenCalledTimes(2);
});

test("a record that a call answered is not undone by a list that was asked for before", async () => {
  const records = new Map([["a", "running"]]);
  const { store } = collection(records);
  const listing = store.refresh();
  records.set("a", "paused");
  store.put({ id: "a", state: "paused" });
  await listing;
  expect(store.items).toEqual([{ id: "a", state: "paused" }]);
  store.put({ id: "a", state: "destroyed" });
  expect(store.items).toEqual([]);
});
