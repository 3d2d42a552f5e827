import { expect, test } from "vitest";
import { windowOf } from "./virtual";

test.each([
  [
    { count: 500, top: 0, height: 400 },
    { from: 0, to: 14 },
  ],
  [
    { count: 500, top: 400, height: 400 },
    { from: 6, to: 24 },
  ],
  [
    { count: 500, top: 19_600, height: 400 },
    { from: 486, to: 500 },
  ],
  [
    { count: 3, top: 0, height: 400 },
    { from: 0, to: 3 },
  ],
  [
    { count: 0, top: 0, height: 400 },
    { from: 0, to: 0 },
  ],
  // After a filter the list is shorter than where it was scrolled to.
  [
    { count: 2, top: 8000, height: 400 },
    { from: 2, to: 2 },
  ],
])("%o", ({ count, top, height }, rows) => {
  expect(windowOf(count, 40, top, height, 4)).toEqual(rows);
});
