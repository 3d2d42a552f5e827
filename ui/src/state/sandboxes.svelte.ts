// All sandboxes, kept fresh by events, and which calls on them are on their way.
import { SvelteMap } from "svelte/reactivity";
import { ApiError, type Api, type CoveEvent, type Sandbox } from "../api/client";
import type { Events } from "./events.svelte";
import { Collection } from "./resource.svelte";

/** Events of work inside a sandbox, which change nothing of its record that is shown. */
const INSIDE = /^sandbox\.(exec|port|share)\./;

export class Sandboxes extends Collection<Sandbox> {
  /** What is being done to a sandbox now, as the word of its state: `pausing`. */
  readonly busy = new SvelteMap<string, string>();
  readonly running = $derived((this.items ?? []).filter((sandbox) => sandbox.state === "running").length);

  /** When each record came, for what goes on counting while it is shown. */
  private readonly cameAt = new WeakMap<Sandbox, number>();

  constructor(
    readonly api: Api["sandboxes"],
    events: Events,
  ) {
    super({
      list: async () => {
        const items = await api.list();
        for (const item of items) this.cameAt.set(item, Date.now());
        return items;
      },
      get: async (id) => {
        try {
          return await api.get(id);
        } catch (error) {
          if (error instanceof ApiError && error.status === 404) return null;
          throw error;
        }
      },
      idOf: (sandbox) => sandbox.id,
      events,
      changedBy: (event: CoveEvent) =>
        INSIDE.test(event.type) || typeof event.sandbox_id !== "string" ? null : event.sandbox_id,
      keeps: (sandbox) => sandbox.state !== "destroyed",
    });
  }

  /** Seconds since the record came. */
  ageOf(sandbox: Sandbox, now: Date): number {
    return (now.getTime() - (this.cameAt.get(sandbox) ?? now.getTime())) / 1000;
  }

  override put(sandbox: Sandbox): void {
    this.cameAt.set(sandbox, Date.now());
    super.put(sandbox);
  }

  /** The state to show: what is being done to it wins over what it was when it was last fetched. */
  stateOf(sandbox: Sandbox): string {
    return this.busy.get(sandbox.id) ?? sandbox.state;
  }

  /** Runs a call on a sandbox while `word` shows as its state; the record that it answers is put in. */
  async during(id: string, word: string, call: () => Promise<Sandbox>): Promise<Sandbox> {
    this.busy.set(id, word);
    try {
      const sandbox = await call();
      this.put(sandbox);
      return sandbox;
    } finally {
      this.busy.delete(id);
      this.touch(id);
    }
  }
}
