// The console of a sandbox: what its kernel and its agent say. Followed while somebody looks; each time it is followed
// anew its newest lines come again, so the old ones make room for them.
import type { Api, ApiError } from "../api/client";
import { isRecord } from "../api/errors";
import type { Frame, Stream, StreamState } from "../api/transport";
import { LogBuffer } from "../lib/log-buffer.svelte";

const LINES = 2_000;

export class ConsoleLog {
  readonly log = new LogBuffer();
  state = $state<StreamState>("connecting");
  error = $state.raw<ApiError | null>(null);
  private stream: Stream | null = null;

  constructor(
    private readonly api: Pick<Api["logs"], "follow">,
    private readonly sandboxId: string,
  ) {}

  follow(wanted: boolean): void {
    if (!wanted) {
      this.stream?.close();
      this.stream = null;
      return;
    }
    this.stream ??= this.api.follow(this.sandboxId, LINES, {
      onEvent: (frame) => this.hear(frame),
      onState: (state, error) => {
        this.state = state;
        this.error = state === "closed" ? (error ?? null) : null;
        if (state === "open") this.log.clear();
      },
    });
  }

  retry(): void {
    this.follow(false);
    this.follow(true);
  }

  private hear({ event, data }: Frame): void {
    if (event === "gap") this.log.push("gap", "Lines are missing here");
    else if (event === "stdout" && isRecord(data) && typeof data.line === "string") this.log.push("out", data.line);
  }
}
