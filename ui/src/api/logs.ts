// A sandbox's console, and what happened to it: both as streams. Neither wakes it up.
import { segment, type Stream, type StreamOptions, type Transport } from "./transport";
import type { components } from "./types.gen";

export type LogLine = components["schemas"]["LineData"];

/** Before every event: a stream that goes on from here tells all that the server still remembers. */
const BEFORE_ALL = "0".repeat(26);

export function logsApi({ stream }: Transport) {
  return {
    /** The newest `lines` of the console, then each line as it comes: frames `stdout` and `gap`. */
    follow: (id: string, lines: number, options: StreamOptions): Stream =>
      stream(`/sandboxes/${segment(id)}/logs/stream`, { ...options, query: { lines } }),
    /** What the server remembers of the sandbox's events, a frame `gap` before it, then each event as it comes. */
    history: (id: string, options: StreamOptions): Stream =>
      stream(`/sandboxes/${segment(id)}/events`, { lastEventId: BEFORE_ALL, ...options }),
  };
}
