import { expect, test } from "vitest";
import { parseDuration, writeDuration } from "./duration";

test.each([
  ["300", 300],
  ["5m", 300],
  [" 5 min ", 300],
  ["1h 30m", 5400],
  ["1.5h", 5400],
  ["1d", 86400],
  ["0", 0],
  ["", null],
  ["soon", null],
  ["5 parsecs", null],
  ["-5", null],
  ["5m!", null],
])("%s", (text, seconds) => {
  expect(parseDuration(text)).toBe(seconds);
});

test("what is written is read back", () => {
  for (const seconds of [0, 1, 59, 90, 300, 5400, 86400, 90061]) {
    expect(parseDuration(writeDuration(seconds))).toBe(seconds);
  }
  expect(writeDuration(5400)).toBe("1h 30m");
});
