// The short histories behind the list's small graphs. Only of sandboxes that run and are in sight, a few requests at a
// time, and not while nobody looks: the server keeps the samples, so nothing is lost by asking seldom.
import { SvelteMap } from "svelte/reactivity";
import type { Metrics } from "../api/client";

const WINDOW = "3m";
/** The server takes a sample every 5 s; a graph this small needs not follow each. */
const REFRESH_MS = 10_000;
const AT_ONCE_MAX = 3;

export interface Spark {
  /** Percent of one processor. */
  cpu: (number | null)[];
  /** Bytes that the host holds. */
  memory: (number | null)[];
  cpuNow: number | null;
  memoryNow: number | null;
}

export class Sparks {
  private readonly byId = new SvelteMap<string, Spark>();
  private readonly askedAt = new Map<string, number>();
  private wanted: string[] = [];
  private working = 0;

  constructor(private readonly fetch: (id: string, window: string) => Promise<Metrics>) {}

  of(id: string): Spark | undefined {
    return this.byId.get(id);
  }

  /** These are in sight and run. */
  want(ids: string[]): void {
    this.wanted = ids;
    this.work();
  }

  /** Keeps what is wanted fresh; gives the way to stop. */
  run(): () => void {
    const timer = setInterval(() => {
      if (!document.hidden) this.work();
    }, REFRESH_MS / 4);
    this.work();
    return () => clearInterval(timer);
  }

  private work(): void {
    while (this.working < AT_ONCE_MAX) {
      const due = Date.now() - REFRESH_MS;
      const id = this.wanted.find((each) => (this.askedAt.get(each) ?? 0) <= due);
      if (id === undefined) return;
      this.askedAt.set(id, Date.now());
      this.working += 1;
      void this.ask(id);
    }
  }

  private async ask(id: string): Promise<void> {
    try {
      const { samples, current } = await this.fetch(id, WINDOW);
      this.byId.set(id, {
        cpu: samples.map((sample) => sample.cpu_percent),
        memory: samples.map((sample) => sample.memory_resident_bytes),
        cpuNow: current.cpu_percent ?? null,
        memoryNow: current.memory_resident_bytes ?? null,
      });
    } catch {
      // A graph that cannot be drawn is not drawn; the row itself says what is wrong with its sandbox.
      this.byId.delete(id);
    }
    this.working -= 1;
    this.work();
  }
}
