// Lines of a program or a console as they come, the newest so many of them. Drawn once a frame, however fast they come.

/** `gap`: output is missing here. `note`: said by the page, not by the program. */
export type LogKind = "out" | "err" | "gap" | "note";

export interface LogEntry {
  /** Counts up by one; the oldest ones go first. */
  id: number;
  kind: LogKind;
  text: string;
}

const LINES_MAX = 10_000;
/** A frame may never come while nobody sees the page. */
const HIDDEN_FLUSH_MS = 200;

export class LogBuffer {
  entries = $state.raw<readonly LogEntry[]>([]);
  /** Lines that are not kept any more. */
  dropped = $state(0);
  private waiting: LogEntry[] = [];
  private next = 0;
  private frame = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly linesMax = LINES_MAX) {}

  push(kind: LogKind, text: string): void {
    this.waiting.push({ id: this.next, kind, text });
    this.next += 1;
    // More than all will be dropped anyway.
    if (this.waiting.length > 2 * this.linesMax) this.flush();
    else if (this.timer === undefined) {
      this.frame = requestAnimationFrame(() => this.flush());
      this.timer = setTimeout(() => this.flush(), HIDDEN_FLUSH_MS);
    }
  }

  clear(): void {
    this.stop();
    this.waiting = [];
    this.entries = [];
    this.dropped = 0;
  }

  /** Takes in what waits, now. */
  flush(): void {
    this.stop();
    if (this.waiting.length === 0) return;
    const all = [...this.entries, ...this.waiting];
    this.waiting = [];
    const surplus = Math.max(0, all.length - this.linesMax);
    this.dropped += surplus;
    this.entries = surplus > 0 ? all.slice(surplus) : all;
  }

  private stop(): void {
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    this.timer = undefined;
  }
}
