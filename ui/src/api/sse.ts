// Server-sent events over `fetch`: frames out of bytes, and a stream that comes back by itself. `EventSource` cannot send
// the token, nor post a body, nor tell why it failed.
import { ApiError, asApiError, errorIn, isRecord } from "./errors";

export interface Frame {
  event: string;
  /** The parsed JSON of the frame. */
  data: unknown;
  id: string | null;
}

/** `closed` is final: the stream ended, was refused, or its owner closed it. */
export type StreamState = "connecting" | "open" | "reconnecting" | "closed";

export interface StreamOptions {
  onEvent: (frame: Frame) => void;
  /** `error` says why a stream is `reconnecting` or was `closed` by the other side. */
  onState?: (state: StreamState, error?: ApiError) => void;
  /** Go on after this event; later ones are remembered by the stream itself. */
  lastEventId?: string | null;
  query?: Record<string, string | number | boolean | null | undefined>;
  method?: "GET" | "POST";
  body?: unknown;
  signal?: AbortSignal;
  /** Come back when the stream breaks or ends; true for GET, false for POST. */
  reconnect?: boolean;
}

export interface Stream {
  close(): void;
}

/** Pings come every 15 s; after this silence the connection is dead, however open it looks. */
const SILENCE_MS = 40_000;
const BACKOFF_MIN_MS = 250;
const BACKOFF_MAX_MS = 5_000;

/** Takes text in pieces, gives whole frames. */
export class FrameParser {
  private rest = "";

  push(text: string): Frame[] {
    const blocks = (this.rest + text).replaceAll("\r\n", "\n").split("\n\n");
    this.rest = blocks.pop() ?? "";
    return blocks.map(frameOf).filter((frame) => frame !== null);
  }
}

function frameOf(block: string): Frame | null {
  let event = "message";
  let id: string | null = null;
  const data: string[] = [];
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    if (colon <= 0) continue;
    const [field, value] = [line.slice(0, colon), line.slice(colon + 1).replace(/^ /, "")];
    if (field === "event") event = value;
    else if (field === "id") id = value;
    else if (field === "data") data.push(value);
  }
  if (data.length === 0) return null;
  try {
    return { event, id, data: JSON.parse(data.join("\n")) as unknown };
  } catch {
    return { event, id, data: data.join("\n") };
  }
}

/** Opens one connection; the stream asks again whenever it comes back. */
export type Open = (lastEventId: string | null, signal: AbortSignal) => Promise<Response>;

/** Waits before try number `attempt` (from 0): doubling, with a random part so that many pages do not come at once. */
export function backoffMs(attempt: number, random = Math.random()): number {
  const most = Math.min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ** attempt);
  return Math.round(most * (0.5 + random / 2));
}

/** A stream that runs until it is closed. */
export function runStream(open: Open, options: StreamOptions): Stream {
  const closing = new AbortController();
  if (options.signal?.aborted) closing.abort();
  options.signal?.addEventListener("abort", () => closing.abort(), { once: true });
  void follow(open, options, closing.signal);
  return { close: () => closing.abort() };
}

async function follow(open: Open, options: StreamOptions, closing: AbortSignal): Promise<void> {
  const reconnect = options.reconnect ?? options.method !== "POST";
  let lastEventId = options.lastEventId ?? null;
  let attempt = 0;
  options.onState?.("connecting");
  while (!closing.aborted) {
    let error: ApiError | undefined;
    const connection = new AbortController();
    const stop = () => connection.abort();
    closing.addEventListener("abort", stop, { once: true });
    try {
      const response = await open(lastEventId, connection.signal);
      attempt = 0;
      options.onState?.("open");
      await readFrames(response, connection, (frame) => {
        if (frame.id !== null) lastEventId = frame.id;
        options.onEvent(frame);
      });
    } catch (thrown) {
      error = asApiError(thrown);
    } finally {
      closing.removeEventListener("abort", stop);
    }
    if (closing.aborted) break;
    // What the server refused it will refuse again, unless it is only starting or stopping.
    const refused = error !== undefined && error.status >= 400 && error.status < 500 && error.status !== 429;
    if (!reconnect || refused) {
      options.onState?.("closed", error);
      return;
    }
    options.onState?.("reconnecting", error);
    await pause(Math.max(backoffMs(attempt), error?.retryAfterMs ?? 0), closing);
    attempt += 1;
  }
  options.onState?.("closed");
}

async function readFrames(response: Response, connection: AbortController, take: (frame: Frame) => void) {
  const reader = response.body?.getReader();
  if (reader === undefined) return;
  const decoder = new TextDecoder();
  const parser = new FrameParser();
  for (;;) {
    const watch = setTimeout(() => connection.abort(), SILENCE_MS);
    try {
      const { done, value } = await reader.read();
      if (done) return;
      for (const frame of parser.push(decoder.decode(value, { stream: true }))) {
        const stopping = serverStops(frame);
        if (stopping !== null) throw stopping;
        take(frame);
      }
    } finally {
      clearTimeout(watch);
    }
  }
}

/** The last frame of a server that goes: no event of the stream's own. */
function serverStops(frame: Frame): ApiError | null {
  if (frame.event !== "error" || !isRecord(frame.data)) return null;
  const error = errorIn(frame.data, 503, null);
  return error?.code === "SERVER_STOPPING" ? error : null;
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const timer = setTimeout(done, ms);
    function done() {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    }
    signal.addEventListener("abort", done, { once: true });
  });
}
