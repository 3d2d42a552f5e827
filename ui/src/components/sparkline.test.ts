import { describe, expect, it } from "vitest";
import { sparkPaths } from "./sparkline";

describe("sparkPaths", () => {
  it("draws nothing of nothing", () => {
    expect(sparkPaths([])).toEqual({ line: "", area: "" });
    expect(sparkPaths([null, null])).toEqual({ line: "", area: "" });
  });

  it("goes from the bottom to the top", () => {
    expect(sparkPaths([0, 10]).line).toBe("M0 22.5L100 1.5");
  });

  it("keeps to a maximum that is given, and inside the drawing", () => {
    expect(sparkPaths([50, 300], 100).line).toBe("M0 12L100 1.5");
    expect(sparkPaths([-5, 0], 100).line).toBe("M0 22.5L100 22.5");
  });

  it("leaves a gap where a value is unknown", () => {
    const { line } = sparkPaths([0, 0, null, 0, 0]);
    expect(line.match(/M/g)).toHaveLength(2);
    expect(line).toBe("M0 22.5L25 22.5M75 22.5L100 22.5");
  });

  it("shows a value alone as a dash", () => {
    expect(sparkPaths([null, 4, null]).line).toBe("M50 1.5L75 1.5");
  });

  it("draws zeros at the bottom when all is zero", () => {
    expect(sparkPaths([0, 0]).line).toBe("M0 22.5L100 22.5");
  });
});
