import { afterEach, expect, test, vi } from "vitest";
import { ApiError, transport } from "./transport";

const heard = vi.fn();
const { send } = transport({ base_url: "http://127.0.0.1:1/api/v1", token: "t" }, heard);

function answers(body: unknown, status = 200, headers: Record<string, string> = {}) {
  const fake = vi.fn<typeof fetch>(() => Promise.resolve(new Response(JSON.stringify(body), { status, headers })));
  vi.stubGlobal("fetch", fake);
  return fake;
}

afterEach(() => {
  vi.unstubAllGlobals();
  heard.mockClear();
});

test("a request carries the token, its query without what is absent, and JSON", async () => {
  const fake = answers({ data: { id: "sbx_1" } });
  await expect(
    send("POST", "/sandboxes", { query: { wait: false, state: null }, body: { name: "a" } }),
  ).resolves.toEqual({
    id: "sbx_1",
  });
  const [url, init] = fake.mock.calls[0] ?? [];
  expect(url).toBe("http://127.0.0.1:1/api/v1/sandboxes?wait=false");
  expect(init).toMatchObject({
    method: "POST",
    body: '{"name":"a"}',
    headers: { authorization: "Bearer t", "content-type": "application/json" },
  });
  expect(heard).toHaveBeenCalledWith(true);
});

test("bytes go as they are, and the whole answer is given on request", async () => {
  const fake = answers({ data: [], default_template_id: "x" });
  await expect(send("GET", "/sandbox-templates", { whole: true })).resolves.toEqual({
    data: [],
    default_template_id: "x",
  });
  const blob = new Blob(["x"]);
  await send("PUT", "/f", { body: blob });
  expect(fake.mock.calls[1]?.[1]).toMatchObject({
    body: blob,
    headers: { "content-type": "application/octet-stream" },
  });
});

test.each([
  ["an error's status", 422],
  ["a good status, since the answer began before its end was known", 200],
])("an error is one with %s", async (_, status) => {
  const error = { code: "VALIDATION_ERROR", message: "name is long", details: { field: "name" }, request_id: "req_b" };
  answers({ error }, status, { "x-request-id": "req_h" });
  const failed = await send("GET", "/x").catch((thrown: unknown) => thrown);
  expect(failed).toBeInstanceOf(ApiError);
  expect(failed).toMatchObject({
    status,
    code: "VALIDATION_ERROR",
    field: "name",
    requestId: "req_h",
    message: "name is long",
  });
});

test("a server that is gone is told from one that refuses", async () => {
  vi.stubGlobal("fetch", () => Promise.reject(new TypeError("Failed to fetch")));
  await expect(send("GET", "/x")).rejects.toMatchObject({ status: 0, code: "UNREACHABLE", unreachable: true });
  expect(heard).toHaveBeenCalledWith(false);
  heard.mockClear();
  answers("Bad gateway", 502);
  await expect(send("GET", "/x")).rejects.toMatchObject({ status: 502, code: "UNREACHABLE" });
  expect(heard.mock.calls).toEqual([[false]]);
});

test("a cancelled request is no failure of the server's", async () => {
  vi.stubGlobal("fetch", () => Promise.reject(new DOMException("aborted", "AbortError")));
  await expect(send("GET", "/x", { signal: AbortSignal.abort() })).rejects.toMatchObject({ name: "AbortError" });
  expect(heard).not.toHaveBeenCalled();
});
