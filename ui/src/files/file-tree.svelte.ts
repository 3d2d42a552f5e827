// The tree of one sandbox's files, filled folder by folder and kept fresh by one watch. It never reads from a sandbox that
// does not run, since that would wake it: whoever shows it says when it may.
import { SvelteMap, SvelteSet } from "svelte/reactivity";
import { ApiError, asApiError, errorIn, isRecord } from "../api/errors";
import type { FileChange, FileEntry } from "../api/files";
import type { Frame, Stream } from "../api/transport";
import type { FilesApi } from "./documents.svelte";
import { isWithin, parentOf, WORKSPACE } from "./paths";
import { effectOf, movedKeys, rowsOf, sorted, type Directory } from "./tree-model";

/** Changes come in bursts (an install, a checkout): a folder is fetched once for many. */
const RELOAD_DELAY_MS = 150;

/** Between two tries to watch, while the sandbox runs. */
const WATCH_RETRY_MS = 3000;

/** Too much below these, or nothing that a watch could see. */
const SHALLOW_ROOTS = ["/proc", "/sys", "/dev"];

export type WatchState = "off" | "starting" | "live" | "shallow" | "failed";

/** What a watch tells besides which folders are stale. */
export interface TreeEvents {
  changed(path: string): void;
  deleted(path: string): void;
  moved(from: string, to: string): void;
  missed(): void;
}

export class FileTree {
  root = $state(WORKSPACE);
  showHidden = $state(false);
  readonly directories = new SvelteMap<string, Directory>();
  readonly expanded = new SvelteSet<string>();
  readonly directoryLinks = new SvelteSet<string>();
  readonly rows = $derived(rowsOf(this));
  watching = $state<WatchState>("off");
  /** Folders that the watch cannot look at. */
  unwatched = $state(0);

  private stream: Stream | null = null;
  /** Counts watches: what an older one says is not heard. */
  private turn = 0;
  private retry: ReturnType<typeof setTimeout> | undefined;
  private awake = false;
  private readonly stale = new Set<string>();
  private staleTimer: ReturnType<typeof setTimeout> | undefined;
  private readonly loads = new Map<string, Promise<void>>();

  constructor(
    private readonly sandbox: string,
    private readonly api: FilesApi,
    private readonly tell: TreeEvents,
    /** Asks whether the sandbox runs, without waking it. */
    private readonly runs: () => Promise<boolean>,
    private readonly onChange: () => void = () => {},
  ) {}

  /** The sandbox runs: what is open is fetched and watched from now on. */
  start(): void {
    if (this.awake) return;
    this.awake = true;
    this.watch();
    this.refresh();
  }

  stop(): void {
    this.awake = false;
    this.unwatch();
    clearTimeout(this.staleTimer);
    this.staleTimer = undefined;
  }

  /** Shows another folder as the top of the tree. */
  go(root: string): void {
    if (root === this.root) return this.refresh();
    this.root = root;
    this.onChange();
    if (!this.awake) return;
    this.unwatch();
    this.watch();
    void this.load(root);
  }

  toggleHidden(): void {
    this.showHidden = !this.showHidden;
    this.onChange();
  }

  expand(path: string): void {
    this.expanded.add(path);
    this.onChange();
    void this.load(path);
  }

  collapse(path: string): void {
    this.expanded.delete(path);
    this.onChange();
  }

  /** What is known of a path; only what is in a loaded folder. */
  entry(path: string): FileEntry | null {
    return this.directories.get(parentOf(path))?.entries?.find((entry) => entry.path === path) ?? null;
  }

  /** Opens every folder above a path, so that it can be seen. */
  async reveal(path: string): Promise<void> {
    if (!isWithin(path, this.root)) this.go(parentOf(path));
    const above: string[] = [];
    for (let at = parentOf(path); isWithin(at, this.root) && at !== this.root; at = parentOf(at)) above.unshift(at);
    for (const directory of above) {
      this.expanded.add(directory);
      if (this.directories.get(directory)?.entries == null) await this.load(directory);
    }
  }

  /** Everything that is open, anew. */
  refresh(): void {
    void this.load(this.root);
    for (const path of this.expanded) {
      if (!isWithin(path, this.root)) continue;
      void this.load(path);
    }
  }

  /** Fetches a folder; calls at the same time are one, and one that comes during another runs after it. */
  load(path: string): Promise<void> {
    const running = this.loads.get(path);
    if (running !== undefined) {
      this.stale.add(path);
      return running;
    }
    const load = this.fetch(path).finally(() => {
      this.loads.delete(path);
      if (this.stale.has(path)) this.later();
    });
    this.loads.set(path, load);
    return load;
  }

  private async fetch(path: string): Promise<void> {
    const before = this.directories.get(path);
    this.directories.set(path, { entries: before?.entries ?? null, loading: true, error: null });
    this.stale.delete(path);
    try {
      const { entries } = await this.api.list(this.sandbox, path);
      this.directories.set(path, { entries: sorted(entries), loading: false, error: null });
    } catch (thrown) {
      const error = asApiError(thrown);
      // What was there is shown on unless it is known to be gone.
      const gone = error.code === "NOT_FOUND" || error.code === "INVALID_PATH";
      this.directories.set(path, { entries: gone ? null : (before?.entries ?? null), loading: false, error });
      if (gone && path !== this.root) this.forget(path);
    }
  }

  /** Opens a link as the folder that it leads to; false when it leads to none. */
  async openLink(path: string): Promise<boolean> {
    try {
      const { entries } = await this.api.list(this.sandbox, path);
      this.directories.set(path, { entries: sorted(entries), loading: false, error: null });
      this.directoryLinks.add(path);
      this.expanded.add(path);
      return true;
    } catch (error) {
      if (error instanceof ApiError && error.code === "INVALID_PATH") return false;
      throw error;
    }
  }

  private forget(path: string): void {
    for (const key of [...this.directories.keys()]) if (isWithin(key, path)) this.directories.delete(key);
    for (const key of [...this.expanded]) if (isWithin(key, path)) this.expanded.delete(key);
  }

  /** A rename that this page made: shown at once, the watch confirms it. */
  renamed(from: string, to: string): void {
    for (const { before, after } of movedKeys(this.expanded, from, to)) {
      this.expanded.delete(before);
      this.expanded.add(after);
    }
    for (const { before } of movedKeys(this.directories.keys(), from, to)) this.directories.delete(before);
    for (const path of this.expanded) if (isWithin(path, to)) void this.load(path);
    this.markStale(parentOf(from), parentOf(to));
  }

  markStale(...paths: string[]): void {
    for (const path of paths) if (this.directories.has(path)) this.stale.add(path);
    if (this.stale.size > 0) this.later();
  }

  private later(): void {
    this.staleTimer ??= setTimeout(() => {
      this.staleTimer = undefined;
      if (!this.awake) return;
      for (const path of [...this.stale]) void this.load(path);
    }, RELOAD_DELAY_MS);
  }

  private watch(): void {
    clearTimeout(this.retry);
    const shallow = this.root === "/" || SHALLOW_ROOTS.some((root) => isWithin(this.root, root));
    this.watching = "starting";
    this.unwatched = 0;
    const turn = ++this.turn;
    this.stream = this.api.watch(this.sandbox, this.root, !shallow, {
      onEvent: (frame) => turn === this.turn && this.take(frame),
      onState: (state, error) => {
        if (turn !== this.turn) return;
        if (state === "open") {
          this.watching = shallow ? "shallow" : "live";
          // What happened between the first look and now was not told.
          this.refresh();
          this.tell.missed();
        } else if (state === "closed") {
          this.stream = null;
          this.watchAgain(error);
        }
      },
    });
  }

  /** The watch ended: the sandbox was paused, the server went, the folder is gone, or there are too many watches. */
  private watchAgain(error?: ApiError): void {
    this.watching = error === undefined ? "off" : "failed";
    clearTimeout(this.retry);
    if (!this.awake) return;
    this.retry = setTimeout(() => void this.tryWatch(), WATCH_RETRY_MS);
  }

  private async tryWatch(): Promise<void> {
    const runs = await this.runs().catch(() => false);
    if (!this.awake || this.stream !== null) return;
    if (runs) this.watch();
    else this.watchAgain();
  }

  private unwatch(): void {
    clearTimeout(this.retry);
    this.turn += 1;
    this.stream?.close();
    this.stream = null;
    this.watching = "off";
  }

  private take(frame: Frame): void {
    if (frame.event === "error") {
      const error = errorIn(frame.data, 409, null);
      this.unwatch();
      this.watchAgain(error ?? undefined);
      return;
    }
    if (!isRecord(frame.data) || typeof frame.data.path !== "string") return;
    const change = frame.data as unknown as FileChange;
    const effect = effectOf(change);
    if (effect.all) {
      this.refresh();
      this.tell.missed();
      return;
    }
    if (effect.unwatched !== null) this.unwatched += effect.unwatched;
    for (const path of effect.forget) {
      this.forget(path);
      this.tell.deleted(path);
    }
    if (effect.moved !== null) {
      this.renamed(effect.moved.from, effect.moved.to);
      this.tell.moved(effect.moved.from, effect.moved.to);
    }
    this.markStale(...effect.stale);
    if (change.event === "created" || change.event === "modified") this.tell.changed(change.path);
  }
}
