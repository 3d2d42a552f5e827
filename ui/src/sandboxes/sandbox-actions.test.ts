import { expect, test } from "vitest";
import { testSandbox } from "../test-sandbox";
import { actionsFor, sandboxActions } from "./sandbox-actions";

const names = (state: string, busy = false) =>
  actionsFor(testSandbox({ state }), busy).map((action) => action.id.replace("sandbox.", ""));

test.each([
  ["running", "open terminal preview pause fork snapshot extend rename copy-id destroy"],
  ["paused", "open terminal preview resume fork snapshot rename copy-id destroy"],
  ["creating", "open rename copy-id destroy"],
  ["error", "open resume rename copy-id destroy"],
  ["destroying", "copy-id"],
])("what can be done to one that is %s", (state, expected) => {
  expect(names(state).join(" ")).toBe(expected);
});

test("while something is being done to it, it can only be looked at", () => {
  expect(names("running", true)).toEqual(["open", "copy-id"]);
});

test("an always-on sandbox has no session to extend", () => {
  expect(actionsFor(testSandbox({ always_on: true }), false).map(({ id }) => id)).not.toContain("sandbox.extend");
});

test("no two actions that can be meant at once share a key", () => {
  for (const state of ["running", "paused", "error", "creating"]) {
    const keys = actionsFor(testSandbox({ state }), false).map(({ shortcut }) => shortcut);
    expect(new Set(keys).size).toBe(keys.length);
  }
  expect(new Set(sandboxActions.map(({ id }) => id)).size).toBe(sandboxActions.length);
});
