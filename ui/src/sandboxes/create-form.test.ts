import { expect, test } from "vitest";
import type { Limits } from "../api/client";
import { bodyOf, checkForm, CUSTOM, firstForm, parseEnv, parseTags } from "./create-form";

const limits: Limits = {
  cpu_count: [1, 16],
  memory_mb: [512, 32768],
  disk_size_mb: [1024, 204800],
  default_shape: { cpu_count: 2, memory_mb: 4096, disk_size_mb: 20480 } as unknown as Limits["default_shape"],
  sizes: [
    { name: "xs", cpu_count: 1, memory_mb: 2048, disk_size_mb: 10240 },
    { name: "small", cpu_count: 2, memory_mb: 4096, disk_size_mb: 20480 },
  ],
  timeout_sec: [1, 86400],
  timeout_sec_default: 300,
  idle_timeout_sec: [0, 86400],
  sandboxes_max: 256,
  cpu_granted_max: 2,
};
const form = firstForm(limits, "miosa-sandbox");

test("the form begins with the server's defaults", () => {
  expect(form).toMatchObject({ size: "small", timeout: "5m", idle: "0", persistent: true });
  expect(checkForm(form, limits, undefined)).toEqual({});
  expect(bodyOf(form)).toEqual({
    template_id: "miosa-sandbox",
    size: "small",
    timeout_sec: 300,
    idle_timeout_sec: 0,
    persistent: true,
    always_on: false,
  });
});

test("what is out of the API's bounds is said at its field", () => {
  const wrong = {
    ...form,
    size: CUSTOM,
    cpu: 17,
    memory: 100,
    disk: null,
    timeout: "soon",
    idle: "2d",
    env: "A=1\n2B=3",
  };
  expect(checkForm(wrong, limits, undefined)).toEqual({
    cpu_count: "Between 1 and 16",
    memory_mb: "Between 512 MB and 32768 MB",
    disk_size_mb: "Between 1024 MB and 204800 MB",
    timeout_sec: "Between 1s and 1d",
    idle_timeout_sec: "Between 0 (off) and 1d",
    env: "Line 2 is not KEY=value",
  });
});

test("a custom shape, an environment and tags go as the API takes them", () => {
  const full = {
    ...form,
    size: CUSTOM,
    cpu: 1,
    memory: 512,
    disk: 2048,
    name: " web ",
    alwaysOn: true,
    tags: "a, b,a,",
  };
  expect(bodyOf({ ...full, env: "A=1" })).toEqual({
    template_id: "miosa-sandbox",
    name: "web",
    cpu_count: 1,
    memory_mb: 512,
    disk_size_mb: 2048,
    idle_timeout_sec: 0,
    persistent: true,
    always_on: true,
    env: { A: "1" },
    tags: ["a", "b"],
  });
});

test("environment lines are those of a .env file", () => {
  expect(parseEnv("# note\n\nA=1\nexport B = x=y \nC='q q'\nD=\"\"\nE=")).toEqual({
    env: { A: "1", B: "x=y", C: "q q", D: "", E: "" },
    error: null,
  });
  expect(parseEnv("no")).toMatchObject({ error: "Line 1 is not KEY=value" });
  expect(parseTags(" ,x,, y")).toEqual(["x", "y"]);
});
