import { expect, test, vi } from "vitest";
import { ApiError } from "../api/client";
import { ConnectionState } from "./connection.svelte";

test("a server that answered and does not is waited for; one that never did is absent", () => {
  vi.useFakeTimers({ now: 0 });
  const known = new ConnectionState();
  known.stream("open");
  known.heard(false);
  expect([known.reach, known.since?.getTime()]).toEqual(["reconnecting", 0]);
  known.heard(true);
  expect([known.reach, known.since]).toEqual(["online", null]);

  const unknown = new ConnectionState();
  unknown.heard(false);
  expect(unknown.reach).toBe("connecting");
  vi.setSystemTime(2000);
  unknown.stream("reconnecting");
  expect(unknown.reach).toBe("absent");
  unknown.stream("open");
  expect(unknown.online).toBe(true);
  vi.useRealTimers();
});

test("a wrong token is refused, not waited for", () => {
  const reach = new ConnectionState();
  reach.stream("closed", new ApiError({ status: 401, code: "invalid_token", message: "no" }));
  reach.heard(true);
  expect([reach.reach, reach.error?.code]).toEqual(["refused", "invalid_token"]);
});
