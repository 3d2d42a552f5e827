// Output on its way to the terminal's screen: many small frames become few writes, and what comes first is written at
// once, so that an echo waits for nobody. Tells when the screen falls so far behind that it had better be drawn anew.

export interface OutputQueueOptions {
  /** `done` must be called when the bytes have been parsed. */
  write: (bytes: Uint8Array, done: () => void) => void;
  /** More than `limit` bytes wait: they are dropped. */
  onOverflow: () => void;
  limit?: number;
}

/** Bytes in one write: parsing them takes a few milliseconds, so keys are answered between two writes. */
const WRITE_BYTES_MAX = 128 * 1024;
const LIMIT_BYTES = 16 * 1024 * 1024;

export class OutputQueue {
  private waiting: Uint8Array[] = [];
  private bytes = 0;
  private writing = false;
  /** Grows with each `clear`, so that a write from before does not count as one of now. */
  private life = 0;

  constructor(private readonly options: OutputQueueOptions) {}

  push(bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    this.waiting.push(bytes);
    this.bytes += bytes.length;
    if (this.bytes > (this.options.limit ?? LIMIT_BYTES)) {
      this.clear();
      this.options.onOverflow();
    } else if (!this.writing) this.next();
  }

  /** Forgets what waits. */
  clear(): void {
    this.waiting = [];
    this.bytes = 0;
    this.writing = false;
    this.life += 1;
  }

  private next(): void {
    const bytes = this.take();
    if (bytes === null) return;
    const life = this.life;
    this.writing = true;
    this.options.write(bytes, () => {
      if (life !== this.life) return;
      this.writing = false;
      this.next();
    });
  }

  /** What waits, up to the most that is written at once; a frame is never cut. */
  private take(): Uint8Array | null {
    const first = this.waiting[0];
    if (first === undefined) return null;
    let [count, size] = [1, first.length];
    for (; count < this.waiting.length; count += 1) {
      const more = this.waiting[count]?.length ?? 0;
      if (size + more > WRITE_BYTES_MAX) break;
      size += more;
    }
    const taken = this.waiting.splice(0, count);
    this.bytes -= size;
    if (count === 1) return first;
    const joined = new Uint8Array(size);
    let at = 0;
    for (const piece of taken) {
      joined.set(piece, at);
      at += piece.length;
    }
    return joined;
  }
}
