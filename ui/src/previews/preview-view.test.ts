import { describe, expect, test } from "vitest";
import type { PortListener, Preview } from "../api/client";
import { coverOf, DEVICES, fit, portsOf, programOf } from "./preview-view";

const preview = (port: number, state = "active") => ({ id: `prv_${port}`, port, state }) as Preview;
const listener = (port: number, command: string | null = null) =>
  ({ port, command, address: "0.0.0.0", pid: null, preview_id: null, url: null }) as PortListener;

test("each port is there once, exposed ones first", () => {
  const ports = portsOf([preview(8080), preview(3000)], [listener(22), listener(3000), listener(3000, "node a.js")]);
  expect(ports.map(({ port }) => port)).toEqual([3000, 8080, 22]);
  expect(ports[0]?.listener?.command).toBe("node a.js");
  expect(ports[1]?.listener).toBeNull();
  expect(ports[2]?.preview).toBeNull();
});

test.each([
  ["/usr/bin/node --inspect /app/server.js", "node server.js"],
  ["python3 -m http.server 8000", "python3 http.server"],
  ["nginx", "nginx"],
  ["", null],
  [null, null],
])("%j is %j", (command, expected) => expect(programOf(command)).toBe(expected));

describe("a device", () => {
  const phone = DEVICES.find((device) => device.id === "phone") as (typeof DEVICES)[0];
  test.each([
    [false, 1000, 1000, { width: 390, height: 844, scale: 1 }],
    [false, 195, 844, { width: 390, height: 844, scale: 0.5 }],
    [true, 844, 195, { width: 844, height: 390, scale: 0.5 }],
    [false, 0, 100, null],
  ])("rotated %s in %i x %i", (rotated, width, height, expected) => {
    expect(fit(phone, rotated, { width, height })).toEqual(expected);
  });
});

test.each([
  [undefined, "running", false, "not-exposed"],
  [{ port: 1, preview: null, listener: listener(1) }, "running", false, "not-exposed"],
  [{ port: 1, preview: preview(1, "expired"), listener: listener(1) }, "running", false, "expired"],
  [{ port: 1, preview: preview(1), listener: null }, "paused", false, "paused"],
  [{ port: 1, preview: preview(1), listener: null }, "creating", false, "not-running"],
  [{ port: 1, preview: preview(1), listener: null }, "running", false, "silent"],
  [{ port: 1, preview: preview(1), listener: null }, "running", true, null],
  [{ port: 1, preview: preview(1), listener: listener(1) }, "running", false, null],
])("%j in state %s", (port, state, forced, expected) => expect(coverOf(port, state, forced)).toBe(expected));
