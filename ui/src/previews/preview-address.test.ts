import { describe, expect, test } from "vitest";
import { addressOf, begin, canGo, current, go, typedPlace, visit } from "./preview-address";

const known = [{ port: 3000, url: "http://127.83.0.5:3001/" }];
const here = { port: 3000, path: "/now" };

describe("what is typed", () => {
  test.each([
    ["", 3000, "/"],
    ["/a?b#c", 3000, "/a?b#c"],
    ["a/b", 3000, "/a/b"],
    ["?q=1", 3000, "/?q=1"],
    [":8080", 8080, "/"],
    ["8080", 8080, "/"],
    [":8080/x?y", 8080, "/x?y"],
    ["404.html", 3000, "/404.html"],
    ["localhost", 80, "/"],
    ["localhost:5173/app", 5173, "/app"],
    ["http://localhost:5173", 5173, "/"],
    ["http://0.0.0.0:8000/", 8000, "/"],
    ["http://[::]:8000/", 8000, "/"],
    ["http://127.83.0.5:3001/x", 3000, "/x"],
    ["127.83.0.5:3001/x", 3000, "/x"],
  ])("%j is port %i, %s", (typed, port, path) => {
    expect(typedPlace(typed, here, known)).toEqual({ kind: "place", place: { port, path } });
  });

  test.each([
    ["https://example.org/x", "web"],
    ["http://127.83.0.9:3001/", "web"],
    ["http://", "wrong"],
    [":99999", "wrong"],
    [":00", "wrong"],
  ])("%j is %s", (typed, kind) => expect(typedPlace(typed, here, known).kind).toBe(kind));
});

test.each([
  ["/a?b#c", null, "http://127.83.0.5:3001/a?b#c"],
  ["/a?b=1", "mp_x", "http://127.83.0.5:3001/a?b=1&mt=mp_x"],
  ["//evil.example/x", null, "http://127.83.0.5:3001/"],
])("the address of %s with the token %j", (path, token, expected) => {
  expect(addressOf(known[0] as (typeof known)[0], path, token)).toBe(expected);
});

describe("a history", () => {
  const place = (path: string) => ({ port: 3000, path });

  test("goes back and forward, and forgets what lay ahead", () => {
    let history = visit(visit(begin(place("/a")), place("/b")), place("/c"));
    history = go(history, -1);
    expect([current(history).path, canGo(history, 1), canGo(history, -1)]).toEqual(["/b", true, true]);
    history = visit(history, place("/d"));
    expect([current(history).path, canGo(history, 1)]).toEqual(["/d", false]);
    expect(go(history, 1)).toBe(history);
  });

  test("the same place again is no step", () => {
    const history = begin(place("/a"));
    expect(visit(history, place("/a"))).toBe(history);
  });
});
