// The ONE connection to `/events/stream`. Every store subscribes here; nobody opens a second one.
import { isRecord } from "../api/errors";
import type { ApiError, CoveEvent } from "../api/client";
import type { Frame, Stream, StreamState } from "../api/transport";

/** Something may have been missed: whoever holds server data fetches it anew. */
export interface Gap {
  type: "gap";
}

export type Happening = CoveEvent | Gap;
export type Listener = (happening: Happening) => void;

interface Source {
  stream(options: { onEvent: (frame: Frame) => void; onState: (state: StreamState, error?: ApiError) => void }): Stream;
}

export function isGap(happening: Happening): happening is Gap {
  return happening.type === "gap";
}

export class Events {
  state = $state<StreamState>("connecting");
  private readonly listeners = new Set<Listener>();
  private stream: Stream | null = null;
  /** Without one the server cannot tell what was missed while the stream was away. */
  private seen = false;

  constructor(
    private readonly source: Source,
    private readonly onState: (state: StreamState, error?: ApiError) => void = () => {},
  ) {}

  start(): void {
    this.stream ??= this.source.stream({
      onEvent: (frame) => this.take(frame),
      onState: (state, error) => {
        this.state = state;
        this.onState(state, error);
        if (state === "open" && !this.seen) this.tell({ type: "gap" });
      },
    });
  }

  stop(): void {
    this.stream?.close();
    this.stream = null;
  }

  /** Calls `listener` for every event from now on; gives the way to stop that. */
  subscribe(listener: Listener): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** As `subscribe`, for the events of one sandbox; gaps come too. */
  ofSandbox(id: string, listener: Listener): () => void {
    return this.subscribe((happening) => {
      if (isGap(happening) || happening.sandbox_id === id) listener(happening);
    });
  }

  private take(frame: Frame): void {
    if (frame.event === "gap") return this.tell({ type: "gap" });
    if (!isRecord(frame.data) || typeof frame.data.type !== "string") return;
    this.seen = true;
    this.tell(frame.data as CoveEvent);
  }

  private tell(happening: Happening): void {
    for (const listener of [...this.listeners]) listener(happening);
  }
}
