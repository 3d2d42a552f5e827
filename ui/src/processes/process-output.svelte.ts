// The output of one process, followed as it comes: lines, gaps, and the end. Stops following when the sandbox sleeps,
// since coming back would wake it, and goes on from its cursor afterwards.
import { asApiError, type Api, type ApiError, type OutputExit } from "../api/client";
import { errorIn, isRecord } from "../api/errors";
import type { Frame, Stream } from "../api/transport";
import { bytes } from "../lib/format";
import { LogBuffer } from "../lib/log-buffer.svelte";

const RETRY_MS = 1_500;

export interface OutputSource {
  api: Pick<Api["processes"], "output">;
  sandboxId: string;
  pid: number;
  /** Whether the sandbox runs now: following would wake it. */
  awake: () => Promise<boolean>;
}

export class ProcessOutput {
  readonly log = new LogBuffer();
  exit = $state.raw<OutputExit | null>(null);
  error = $state.raw<ApiError | null>(null);
  /** Nothing can come any more. */
  over = $state(false);
  private stream: Stream | null = null;
  private cursor: string | null = null;
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly source: OutputSource,
    private readonly onExit: () => void = () => {},
  ) {}

  follow(wanted: boolean): void {
    clearTimeout(this.timer);
    if (!wanted) {
      this.stream?.close();
      this.stream = null;
    } else if (this.stream === null && !this.over) this.open();
  }

  /** Tries again from where it stopped. */
  retry(): void {
    this.follow(false);
    this.follow(true);
  }

  private open(): void {
    this.error = null;
    const { api, sandboxId, pid } = this.source;
    const stream = api.output(sandboxId, pid, {
      lastEventId: this.cursor,
      onEvent: (frame) => this.take(frame),
      // It would come back by itself without asking whether the sandbox sleeps meanwhile.
      reconnect: false,
      onState: (state, error) => {
        if (state !== "closed" || this.stream !== stream) return;
        this.stream = null;
        if (error !== undefined && !error.unreachable) this.error = error;
        else this.timer = setTimeout(() => void this.again(), RETRY_MS);
      },
    });
    this.stream = stream;
  }

  private async again(): Promise<void> {
    try {
      if (await this.source.awake()) this.follow(true);
    } catch (error) {
      const failed = asApiError(error);
      if (failed.unreachable) this.timer = setTimeout(() => void this.again(), RETRY_MS);
      else this.error = failed;
    }
  }

  private take({ event, data, id }: Frame): void {
    if (id !== null) this.cursor = id;
    if (!isRecord(data)) return;
    if ((event === "stdout" || event === "stderr") && typeof data.line === "string") {
      this.log.push(event === "stderr" ? "err" : "out", data.line);
    } else if (event === "gap") {
      const size = Number(data.to) - Number(data.from);
      this.log.push(
        "gap",
        `${Number.isFinite(size) ? bytes(size) : "Output"} missing: it was overwritten before it was read`,
      );
    } else if (event === "exit") {
      this.exit = data as unknown as OutputExit;
      this.finish();
      this.onExit();
    } else if (event === "error") {
      this.error = errorIn(data, 500, null);
      this.follow(false);
    }
  }

  private finish(): void {
    this.over = true;
    this.follow(false);
  }
}
