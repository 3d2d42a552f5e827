// The one way to the API: requests, streams, sockets, and links for downloads. Knows the token and nothing of sandboxes.
import type { Connection } from "./connection";
import { ApiError, errorIn, isRecord, UNREACHABLE } from "./errors";
import { runStream, type Stream, type StreamOptions } from "./sse";

export { ApiError } from "./errors";
export type { Frame, Stream, StreamOptions, StreamState } from "./sse";

export type Query = Record<string, string | number | boolean | null | undefined>;

export interface SendOptions {
  query?: Query;
  /** JSON; or bytes (Blob, ArrayBuffer, typed array), which are sent as they are. */
  body?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal;
  /** The whole answer instead of its `data`: for the few answers that say more beside it. */
  whole?: boolean;
}

export interface UploadOptions {
  query?: Query;
  signal?: AbortSignal;
  /** Bytes sent so far and in all. */
  onProgress?: (sent: number, total: number) => void;
}

export interface Transport {
  /** One request; gives the answer's `data`, or the Response itself with `raw`. Fails with ApiError, or AbortError. */
  send<T = unknown>(method: string, path: string, options?: SendOptions & { raw?: false }): Promise<T>;
  send(method: string, path: string, options: SendOptions & { raw: true }): Promise<Response>;
  /** Server-sent events; comes back by itself from where it was. */
  stream(path: string, options: StreamOptions): Stream;
  /** A WebSocket, let in by a ticket since a page cannot send a header with it. */
  socket(path: string, query?: Query): Promise<WebSocket>;
  /** An address that can be opened once within a minute, without the token in it. */
  url(path: string, query?: Query): Promise<string>;
  /** PUT of a body with progress, which `fetch` cannot tell. */
  upload<T = unknown>(path: string, body: Blob, options?: UploadOptions): Promise<T>;
}

/** `heard` is told of every answer (true) and of every request that got none (false). */
export function transport(connection: Connection, heard: (answered: boolean) => void = () => {}): Transport {
  // Read each time: the window's host may give another server in its place.
  const address = (path: string, query?: Query) => connection.base_url + path + search(query);
  const bearer = () => `Bearer ${connection.token}`;

  async function request(method: string, path: string, options: SendOptions): Promise<Response> {
    const { body, type } = bodyOf(options.body);
    const headers = { authorization: bearer(), ...(type === null ? {} : { "content-type": type }), ...options.headers };
    const init: RequestInit = { method, headers };
    if (body !== null) init.body = body;
    if (options.signal !== undefined) init.signal = options.signal;
    let response: Response;
    try {
      response = await fetch(address(path, options.query), init);
    } catch (error) {
      if (options.signal?.aborted) throw new DOMException("The request was cancelled", "AbortError");
      heard(false);
      throw unreachable(error);
    }
    if (response.ok) {
      heard(true);
      return response;
    }
    const failed = await failure(response);
    heard(!failed.unreachable);
    throw failed;
  }

  async function send(method: string, path: string, options: SendOptions & { raw?: boolean } = {}): Promise<unknown> {
    const response = await request(method, path, options);
    if (options.raw) return response;
    if (response.status === 204) return undefined;
    const answer = (await response.json().catch((error: unknown) => {
      throw options.signal?.aborted ? new DOMException("The request was cancelled", "AbortError") : unreachable(error);
    })) as unknown;
    const error = errorIn(answer, response.status, response.headers.get("x-request-id"));
    if (error !== null) throw error;
    return options.whole || !isRecord(answer) || !("data" in answer) ? answer : answer.data;
  }

  const ticket = async () => ((await send("POST", "/sse/ticket")) as { ticket: string }).ticket;

  return {
    send: send as Transport["send"],
    stream: (path, options) =>
      runStream((lastEventId, signal) => {
        const headers: Record<string, string> = { accept: "text/event-stream" };
        if (lastEventId !== null) headers["last-event-id"] = lastEventId;
        const { query, body, method = "GET" } = options;
        return request(method, path, { headers, signal, body, ...(query === undefined ? {} : { query }) });
      }, options),
    socket: async (path, query) => {
      const url = new URL(address(path, { ...query, ticket: await ticket() }), location.href);
      url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
      return new WebSocket(url);
    },
    url: async (path, query) => address(path, { ...query, ticket: await ticket() }),
    upload: <T>(path: string, body: Blob, options: UploadOptions = {}) =>
      upload(address(path, options.query), bearer(), body, options, heard) as Promise<T>,
  };
}

/** A path segment, escaped. */
export function segment(text: string): string {
  return encodeURIComponent(text);
}

function search(query?: Query): string {
  const pairs = Object.entries(query ?? {}).filter((pair) => pair[1] !== null && pair[1] !== undefined);
  if (pairs.length === 0) return "";
  return `?${new URLSearchParams(pairs.map(([key, value]) => [key, String(value)])).toString()}`;
}

function bodyOf(body: unknown): { body: BodyInit | null; type: string | null } {
  if (body === undefined) return { body: null, type: null };
  if (body instanceof Blob || body instanceof ArrayBuffer || ArrayBuffer.isView(body)) {
    return { body: body as BodyInit, type: "application/octet-stream" };
  }
  return { body: JSON.stringify(body), type: "application/json" };
}

function unreachable(cause: unknown): ApiError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  return new ApiError({
    status: 0,
    code: UNREACHABLE,
    message: "Cove's server does not answer.",
    details: { reason },
  });
}

async function failure(response: Response): Promise<ApiError> {
  const answer: unknown = await response.json().catch(() => null);
  const requestId = response.headers.get("x-request-id");
  return (
    errorIn(answer, response.status, requestId) ??
    // A proxy between us and the server answers for a server that is gone.
    new ApiError({
      status: response.status,
      code: response.status === 502 || response.status === 504 ? UNREACHABLE : "UNKNOWN",
      message: `The server answered HTTP ${response.status}.`,
      requestId: requestId ?? undefined,
    })
  );
}

function upload(
  url: string,
  authorization: string,
  body: Blob,
  options: UploadOptions,
  heard: (answered: boolean) => void,
): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PUT", url);
    request.setRequestHeader("authorization", authorization);
    request.setRequestHeader("content-type", "application/octet-stream");
    request.responseType = "json";
    request.upload.onprogress = (event) => options.onProgress?.(event.loaded, event.total);
    request.onabort = () => reject(new DOMException("The upload was cancelled", "AbortError"));
    request.onerror = () => {
      heard(false);
      reject(unreachable(new Error("the connection broke")));
    };
    request.onload = () => {
      heard(true);
      const answer = request.response as unknown;
      const error = errorIn(answer, request.status, request.getResponseHeader("x-request-id"));
      if (error !== null) reject(error);
      else if (request.status >= 400) {
        reject(new ApiError({ status: request.status, code: "UNKNOWN", message: `HTTP ${request.status}` }));
      } else resolve(isRecord(answer) && "data" in answer ? answer.data : answer);
    };
    if (options.signal?.aborted) return reject(new DOMException("The upload was cancelled", "AbortError"));
    options.signal?.addEventListener("abort", () => request.abort(), { once: true });
    request.send(body);
  });
}
