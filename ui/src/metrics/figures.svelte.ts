// The figures of a sandbox over a range of time, growing at the end while somebody looks. Asking does not wake it.
import { asApiError, type Api, type ApiError, type Metrics, type Usage } from "../api/client";
import { mergeSamples, RANGES, type Range, type RangeName } from "./series";

/** Newer samples come with this window: more than two polls. */
const LIVE_WINDOW = "30s";

export class Figures {
  range = $state.raw<Range>(RANGES[1] ?? { value: "1h", label: "1 h", seconds: 3600, pollMs: 5000 });
  metrics = $state.raw<Metrics | null>(null);
  usage = $state.raw<Usage | null>(null);
  error = $state.raw<ApiError | null>(null);
  /** When the figures were asked for last: the right end of the graphs. */
  at = $state(Date.now() / 1000);
  private timer: ReturnType<typeof setTimeout> | undefined;
  private abort: AbortController | null = null;
  private looking = false;

  constructor(
    private readonly api: Pick<Api, "metrics" | "sandboxes">,
    private readonly sandboxId: string,
  ) {}

  watch(looking: boolean): void {
    this.looking = looking;
    this.stop();
    if (looking) void this.load();
  }

  choose(value: RangeName): void {
    this.range = RANGES.find((range) => range.value === value) ?? this.range;
    this.watch(this.looking);
  }

  /** The whole range, and then what is new. */
  async load(): Promise<void> {
    await this.fetch(this.range.value, (metrics) => metrics);
  }

  private stop(): void {
    clearTimeout(this.timer);
    this.abort?.abort();
  }

  private async grow(): Promise<void> {
    if (document.hidden) return this.later();
    // A day's samples lie a minute apart and are made of finer ones: they cannot be put together from the newest.
    if (this.range.value === "24h") return this.load();
    const from = Date.now() / 1000 - this.range.seconds;
    await this.fetch(LIVE_WINDOW, (fresh) => {
      const old = this.metrics;
      if (old === null) return fresh;
      return { ...old, current: fresh.current, samples: mergeSamples(old.samples, fresh.samples, from) };
    });
  }

  private async fetch(window: string, take: (metrics: Metrics) => Metrics): Promise<void> {
    const abort = new AbortController();
    this.abort = abort;
    try {
      const [metrics, usage] = await Promise.all([
        this.api.metrics.of(this.sandboxId, window, abort.signal),
        this.api.sandboxes.usage(this.sandboxId),
      ]);
      if (abort.signal.aborted) return;
      this.metrics = take(metrics);
      this.usage = usage;
      this.at = Date.now() / 1000;
      this.error = null;
    } catch (error) {
      if (abort.signal.aborted) return;
      this.error = asApiError(error);
    }
    this.later();
  }

  private later(): void {
    clearTimeout(this.timer);
    if (this.looking) this.timer = setTimeout(() => void this.grow(), this.range.pollMs);
  }
}
