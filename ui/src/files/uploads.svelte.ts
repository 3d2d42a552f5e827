// Uploads into one sandbox: some at a time, the others wait; each shows its progress and can be cancelled.
import { asApiError, isAbort, type ApiError } from "../api/client";
import type { FilesApi } from "./documents.svelte";
import { join, nameOf } from "./paths";
import type { UploadBatch } from "./upload-items";

/** More at a time would not be faster: they share one connection into the sandbox. */
export const UPLOADS_AT_A_TIME = 3;

export type UploadState = "waiting" | "running" | "done" | "failed" | "cancelled";

export class Upload {
  state = $state<UploadState>("waiting");
  sent = $state(0);
  error = $state.raw<ApiError | null>(null);
  readonly name: string;
  private readonly aborting = new AbortController();

  constructor(
    readonly path: string,
    readonly file: File,
  ) {
    this.name = nameOf(path);
  }

  get over(): boolean {
    return this.state !== "waiting" && this.state !== "running";
  }

  cancel(): void {
    if (this.over) return;
    this.state = "cancelled";
    this.aborting.abort();
  }

  async run(sandbox: string, api: FilesApi): Promise<void> {
    this.state = "running";
    try {
      await api.write(sandbox, this.path, this.file, {
        signal: this.aborting.signal,
        onProgress: (sent) => (this.sent = sent),
      });
      this.sent = this.file.size;
      this.state = "done";
    } catch (error) {
      if (isAbort(error) || this.aborting.signal.aborted) {
        this.state = "cancelled";
      } else {
        this.error = asApiError(error);
        this.state = "failed";
      }
    }
  }

  /** Back into the queue, after a failure. */
  again(): Upload {
    return new Upload(this.path, this.file);
  }
}

export class Uploads {
  all = $state.raw<Upload[]>([]);
  readonly open = $derived(this.all.filter((upload) => !upload.over));
  readonly failed = $derived(this.all.filter((upload) => upload.state === "failed"));
  readonly bytesTotal = $derived(sum(this.all.filter(counts), (upload) => upload.file.size));
  readonly bytesSent = $derived(sum(this.all.filter(counts), (upload) => upload.sent));
  private running = 0;

  constructor(
    private readonly sandbox: string,
    private readonly api: FilesApi,
    /** A file is there. */
    private readonly onDone: (path: string) => void = () => {},
  ) {}

  /** Queues what was dropped or chosen below `target`. Fails when an empty folder cannot be made. */
  async add(batch: UploadBatch, target: string): Promise<void> {
    // A new batch begins a new list; what failed stays to be tried again.
    if (this.open.length === 0) this.all = this.failed;
    this.all = [...this.all, ...batch.files.map(({ file, place }) => new Upload(join(target, place), file))];
    this.pump();
    for (const folder of batch.emptyFolders) {
      await this.api.makeDir(this.sandbox, join(target, folder));
      this.onDone(join(target, folder));
    }
  }

  cancelAll(): void {
    for (const upload of this.open) upload.cancel();
  }

  retryFailed(): void {
    const again = this.failed.map((upload) => upload.again());
    this.all = [...this.all.filter((upload) => upload.state !== "failed"), ...again];
    this.pump();
  }

  clear(): void {
    this.all = this.open;
  }

  private pump(): void {
    while (this.running < UPLOADS_AT_A_TIME) {
      const next = this.all.find((upload) => upload.state === "waiting");
      if (next === undefined) return;
      this.running += 1;
      void next.run(this.sandbox, this.api).finally(() => {
        this.running -= 1;
        if (next.state === "done") this.onDone(next.path);
        this.pump();
      });
    }
  }
}

function counts(upload: Upload): boolean {
  return upload.state !== "cancelled" && upload.state !== "failed";
}

function sum<T>(items: readonly T[], of: (item: T) => number): number {
  return items.reduce((total, item) => total + of(item), 0);
}
