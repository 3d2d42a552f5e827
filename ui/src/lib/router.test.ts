import { expect, test } from "vitest";
import { hrefOf, hrefOfSandbox, parseRoute } from "./router.svelte";

test.each([
  ["", { name: "sandboxes" }],
  ["#/", { name: "sandboxes" }],
  ["#/nowhere", { name: "sandboxes" }],
  ["#/sandboxes/sbx_1", { name: "sandbox", id: "sbx_1", tab: "overview", rest: [] }],
  ["#/sandboxes/sbx_1/files/a%2Fb/c", { name: "sandbox", id: "sbx_1", tab: "files", rest: ["a/b", "c"] }],
  ["#/templates/x", { name: "templates", rest: ["x"] }],
  ["#/disk", { name: "disk" }],
  ["#/settings", { name: "settings" }],
  ["#/sandboxes/%zz", { name: "sandbox", id: "%zz", tab: "overview", rest: [] }],
])("%s leads somewhere", (hash, route) => {
  expect(parseRoute(hash)).toEqual(route);
});

test("an address comes back as what it was made of", () => {
  expect(parseRoute(hrefOfSandbox("sbx_1", "files", "/a b/ü"))).toMatchObject({ id: "sbx_1", rest: ["/a b/ü"] });
  expect(hrefOf("disk")).toBe("#/disk");
});
