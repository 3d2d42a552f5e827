import { expect, it } from "vitest";
import type { Usage } from "../api/client";
import { meterOf } from "./usage-view";

const usage = {
  active_cpu_ms: 4210,
  provisioned_vcpu_ms: 123_000,
  provisioned_memory_mb_ms: 251_904_000,
  network_egress_bytes: null,
  measurement_status: { active_cpu: "sampled", network: "unavailable", provisioned_resources: "measured" },
} as Usage;

it("tells what was used, and what is not known", () => {
  expect(meterOf(usage).map(({ label, value, known }) => [label, value, known])).toEqual([
    ["vCPU-seconds", "123", true],
    ["GiB-seconds", "246", true],
    ["Processor time", "4.2 s", true],
    ["Network", "Unknown", false],
  ]);
});

it("calls nothing zero that was never measured", () => {
  const unknown = {
    ...usage,
    active_cpu_ms: null,
    measurement_status: { active_cpu: "unavailable", network: "unavailable", provisioned_resources: "unavailable" },
  };
  expect(meterOf(unknown).map(({ value }) => value)).toEqual(["Unknown", "Unknown", "Unknown", "Unknown"]);
});
