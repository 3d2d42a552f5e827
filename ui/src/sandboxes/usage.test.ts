import { expect, test } from "vitest";
import { testSandbox } from "../test-sandbox";
import { meter, meterText } from "./usage";

test("a running sandbox goes on using; what is not known stays unknown", () => {
  expect(meter(testSandbox({ total_runtime_sec: 60, memory_mb: 512, cpu_granted: 2 }), 10)).toEqual({
    vcpuSeconds: 140,
    gibSeconds: 35,
  });
  expect(meter(testSandbox({ state: "paused", total_runtime_sec: 60 }), 10)).toEqual({
    vcpuSeconds: 60,
    gibSeconds: 30,
  });
  expect(meter(testSandbox({ total_runtime_sec: null }), 10)).toEqual({ vcpuSeconds: null, gibSeconds: null });
  expect(meter(testSandbox({ cpu_granted: null }), 0)).toEqual({ vcpuSeconds: null, gibSeconds: 30 });
});

test("seconds while they can be read, then hours", () => {
  expect([null, 0.4, 1234, 36_000, 1_000_000].map((seconds) => meterText(seconds, "vCPU"))).toEqual([
    "— vCPU",
    "0 vCPU-s",
    "1,234 vCPU-s",
    "10.0 vCPU-h",
    "278 vCPU-h",
  ]);
});
