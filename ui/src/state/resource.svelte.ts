// Server data that stays fresh: fetched once, again when an event makes it stale, and again after a gap. `Resource` holds
// one answer; `Collection` holds records by id and fetches only those that changed.
import { asApiError, isAbort, type ApiError, type CoveEvent } from "../api/client";
import { isGap, type Events } from "./events.svelte";

/** Events come in bursts; one fetch answers all that come within this time. */
const SETTLE_MS = 25;
/** When more records than this changed at once, the list is one request instead of many. */
const SINGLE_FETCHES_MAX = 8;

export interface ResourceOptions<T> {
  fetch: () => Promise<T>;
  events?: Events;
  /** True for events after which the data is no longer true. */
  staleOn?: (event: CoveEvent) => boolean;
}

export class Resource<T> {
  data = $state.raw<T | null>(null);
  error = $state.raw<ApiError | null>(null);
  loading = $state(false);
  private readonly options: ResourceOptions<T>;
  private readonly unsubscribe: () => void;
  private fetching: Promise<void> | null = null;
  private again = false;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private disposed = false;

  constructor(options: ResourceOptions<T>) {
    this.options = options;
    const { events, staleOn } = options;
    this.unsubscribe =
      events?.subscribe((happening) => {
        if (isGap(happening) || staleOn?.(happening)) this.stale();
      }) ?? (() => {});
  }

  /** Fetches now; calls during a fetch are answered by one more after it. */
  refresh(): Promise<void> {
    if (this.disposed) return Promise.resolve();
    if (this.fetching !== null) {
      this.again = true;
      return this.fetching;
    }
    this.fetching = this.run().finally(() => (this.fetching = null));
    return this.fetching;
  }

  /** Fetches soon, if anybody ever fetched it. */
  stale(): void {
    if (this.data === null && this.fetching === null && this.error === null) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => void this.refresh(), SETTLE_MS);
  }

  /** Puts in what a call answered, so that it shows at once. */
  set(data: T): void {
    this.data = data;
  }

  dispose(): void {
    this.disposed = true;
    clearTimeout(this.timer);
    this.unsubscribe();
  }

  private async run(): Promise<void> {
    this.loading = true;
    do {
      this.again = false;
      try {
        const data = await this.options.fetch();
        if (this.disposed) return;
        this.data = data;
        this.error = null;
      } catch (error) {
        if (!isAbort(error)) this.error = asApiError(error);
      }
    } while (this.again && !this.disposed);
    this.loading = false;
  }
}

export interface CollectionOptions<T> {
  list: () => Promise<T[]>;
  /** One record; `null` when there is none any more. */
  get: (id: string) => Promise<T | null>;
  idOf: (item: T) => string;
  events?: Events;
  /** The id of the record that an event changed, if any. */
  changedBy?: (event: CoveEvent) => string | null;
  /** False for records that the list does not show, such as destroyed ones. */
  keeps?: (item: T) => boolean;
}

export class Collection<T> {
  items = $state.raw<T[] | null>(null);
  error = $state.raw<ApiError | null>(null);
  loading = $state(false);
  readonly byId = $derived(new Map((this.items ?? []).map((item) => [this.options.idOf(item), item])));
  private readonly options: CollectionOptions<T>;
  private readonly unsubscribe: () => void;
  private readonly changed = new Set<string>();
  private fetching: Promise<void> | null = null;
  private again = false;
  private timer: ReturnType<typeof setTimeout> | undefined;
  /** Counts what was put in by hand, so that a slower list does not overwrite newer records. */
  private writes = 0;

  constructor(options: CollectionOptions<T>) {
    this.options = options;
    const { events, changedBy } = options;
    this.unsubscribe =
      events?.subscribe((happening) => {
        if (isGap(happening)) void this.refresh();
        else {
          const id = changedBy?.(happening) ?? null;
          if (id !== null) this.touch(id);
        }
      }) ?? (() => {});
  }

  /** Fetches the whole list. */
  refresh(): Promise<void> {
    if (this.fetching !== null) {
      this.again = true;
      return this.fetching;
    }
    this.fetching = this.run().finally(() => (this.fetching = null));
    return this.fetching;
  }

  /** The record `id` is no longer what we hold; it is fetched soon. */
  touch(id: string): void {
    this.changed.add(id);
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      const ids = [...this.changed];
      this.changed.clear();
      if (ids.length > SINGLE_FETCHES_MAX) void this.refresh();
      else void Promise.all(ids.map((each) => this.fetchOne(each)));
    }, SETTLE_MS);
  }

  /** Puts in a record that a call answered. */
  put(item: T): void {
    const id = this.options.idOf(item);
    this.writes += 1;
    if (this.options.keeps?.(item) === false) return this.remove(id);
    const items = this.items ?? [];
    const at = items.findIndex((each) => this.options.idOf(each) === id);
    this.items = at < 0 ? [...items, item] : items.with(at, item);
  }

  remove(id: string): void {
    this.writes += 1;
    this.items = (this.items ?? []).filter((item) => this.options.idOf(item) !== id);
  }

  dispose(): void {
    clearTimeout(this.timer);
    this.unsubscribe();
  }

  private async fetchOne(id: string): Promise<void> {
    try {
      const item = await this.options.get(id);
      if (item === null) this.remove(id);
      else this.put(item);
    } catch {
      // The list says what is true, and why it cannot be told.
      await this.refresh();
    }
  }

  private async run(): Promise<void> {
    this.loading = true;
    let tries = 0;
    do {
      this.again = false;
      const writes = this.writes;
      try {
        const items = await this.options.list();
        if (writes !== this.writes && tries < 3) this.again = true;
        else this.items = items;
        this.error = null;
      } catch (error) {
        this.error = asApiError(error);
      }
      tries += 1;
    } while (this.again);
    this.loading = false;
  }
}
