// The background processes of a sandbox and who listens in it. No event tells of either's end, so the list is asked for
// now and then while somebody looks; never while the sandbox does not run, since asking would wake it.
import {
  asApiError,
  isAbort,
  type Api,
  type ApiError,
  type Listener,
  type ProcessBody,
  type ProcessRecord,
} from "../api/client";
import { ordered } from "./process-view";

const POLL_MS = 4_000;

export class Processes {
  list = $state.raw<ProcessRecord[] | null>(null);
  listeners = $state.raw<Listener[]>([]);
  error = $state.raw<ApiError | null>(null);
  private timer: ReturnType<typeof setInterval> | undefined;
  private running = false;

  constructor(
    private readonly api: Api["processes"],
    private readonly sandboxId: string,
  ) {}

  /** `looking`: somebody sees the list and the sandbox runs. */
  watch(looking: boolean): void {
    clearInterval(this.timer);
    this.timer = undefined;
    if (!looking) return;
    void this.refresh();
    this.timer = setInterval(() => {
      if (!document.hidden) void this.refresh();
    }, POLL_MS);
  }

  async refresh(): Promise<void> {
    if (this.running) return;
    this.running = true;
    try {
      const [list, listeners] = await Promise.all([this.api.list(this.sandboxId), this.api.listeners(this.sandboxId)]);
      this.list = ordered(list);
      this.listeners = listeners;
      this.error = null;
    } catch (error) {
      if (!isAbort(error)) this.error = asApiError(error);
    } finally {
      this.running = false;
    }
  }

  async start(body: ProcessBody): Promise<ProcessRecord> {
    const started = await this.api.start(this.sandboxId, body);
    this.put(started);
    return started;
  }

  async signal(pid: number, signal: string): Promise<void> {
    this.put(await this.api.signal(this.sandboxId, pid, signal));
  }

  async stop(pid: number): Promise<void> {
    await this.api.stop(this.sandboxId, pid);
    await this.refresh();
  }

  async write(pid: number, data: string, end = false): Promise<void> {
    const { stdin_open } = await this.api.write(this.sandboxId, pid, data, end);
    const process = this.list?.find((each) => each.pid === pid);
    if (process !== undefined) this.put({ ...process, stdin_open });
  }

  private put(process: ProcessRecord): void {
    this.list = ordered([...(this.list ?? []).filter((each) => each.pid !== process.pid), process]);
  }
}
