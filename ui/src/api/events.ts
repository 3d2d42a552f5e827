// The stream of what happens to all sandboxes. `state/events.svelte.ts` keeps the one connection; pages subscribe there.
import type { Stream, StreamOptions, Transport } from "./transport";

/** An event as it comes; what its kind says stands beside the common fields. */
export interface CoveEvent {
  type: string;
  id: string;
  ts: string;
  sandbox_id: string;
  [fact: string]: unknown;
}

export function eventsApi({ stream }: Transport) {
  return {
    stream: (options: StreamOptions): Stream => stream("/events/stream", options),
  };
}
