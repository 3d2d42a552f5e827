// What happened to a sandbox, as far back as the server remembers, and on from there. One stream gives both; it is only
// open while somebody looks, and goes on where it was.
import type { Api, ApiError, CoveEvent } from "../api/client";
import { isRecord } from "../api/errors";
import type { Frame, Stream, StreamState } from "../api/transport";

const EVENTS_MAX = 2_000;

export class Timeline {
  /** Oldest first. */
  events = $state.raw<CoveEvent[]>([]);
  /** The server may have known more that it does not remember. */
  older = $state(false);
  state = $state<StreamState>("connecting");
  error = $state.raw<ApiError | null>(null);
  private stream: Stream | null = null;
  private last: string | null = null;
  private waiting: CoveEvent[] = [];
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly api: Pick<Api["logs"], "history">,
    private readonly sandboxId: string,
  ) {}

  follow(wanted: boolean): void {
    if (!wanted) {
      this.stream?.close();
      this.stream = null;
      this.take();
      return;
    }
    this.stream ??= this.api.history(this.sandboxId, {
      ...(this.last === null ? {} : { lastEventId: this.last }),
      onEvent: (frame) => this.hear(frame),
      onState: (state, error) => {
        this.state = state;
        this.error = state === "closed" ? (error ?? null) : null;
      },
    });
  }

  retry(): void {
    this.follow(false);
    this.follow(true);
  }

  private hear({ event, data, id }: Frame): void {
    if (event === "gap") return this.gap();
    if (!isRecord(data) || typeof data.type !== "string" || id === null) return;
    this.last = id;
    this.waiting.push(data as CoveEvent);
    this.soon();
  }

  /** The first gap is before all; a later one lies between what was seen and what comes. */
  private gap(): void {
    this.take();
    const last = this.events.at(-1);
    if (last === undefined) this.older = true;
    else if (last.type !== "gap") {
      const marker = { type: "gap", id: `gap-${last.id}`, ts: new Date().toISOString(), sandbox_id: this.sandboxId };
      this.waiting.push(marker);
      this.soon();
    }
  }

  private soon(): void {
    this.timer ??= setTimeout(() => this.take(), 16);
  }

  private take(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
    if (this.waiting.length === 0) return;
    const known = new Set(this.events.map((event) => event.id));
    const fresh = this.waiting.filter((event) => !known.has(event.id));
    this.waiting = [];
    const all = [...this.events, ...fresh];
    if (all.length > EVENTS_MAX) this.older = true;
    this.events = all.slice(-EVENTS_MAX);
  }
}
