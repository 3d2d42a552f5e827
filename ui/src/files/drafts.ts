// What was typed and not yet saved, kept in this browser so that a reload, a crash or a restarted server loses none of it.
// IndexedDB holds drafts of any length; what is typed in the last moment before the page goes is put into sessionStorage,
// since that is written at once.
import type { Version } from "./save-conflict";

export interface Draft {
  sandbox: string;
  path: string;
  text: string;
  /** What the edit began from. */
  base: Version | null;
  /** Milliseconds since 1970. */
  at: number;
}

export interface Drafts {
  get(sandbox: string, path: string): Promise<Draft | null>;
  /** Paths of a sandbox that have a draft. */
  paths(sandbox: string): Promise<string[]>;
  put(draft: Draft): Promise<void>;
  /** Writes at once, for a page that goes. */
  putNow(draft: Draft): void;
  remove(sandbox: string, path: string): Promise<void>;
}

export function newDraft(sandbox: string, path: string, text: string, base: Version | null): Draft {
  return { sandbox, path, text, base, at: Date.now() };
}

const DATABASE = "cove.drafts";
const STORE = "drafts";
const PREFIX = "cove.draft:";

/** Longest text that goes into sessionStorage, which has about 5 MB for the whole page. */
const NOW_CHARS_MAX = 1_000_000;

const keyOf = (sandbox: string, path: string) => `${sandbox}:${path}`;

/** Keeps drafts in the browser; one that cannot (private mode, no room) still works, without IndexedDB's part. */
export function browserDrafts(): Drafts {
  let opening: Promise<IDBDatabase | null> | null = null;
  const database = () => (opening ??= open().catch(() => null));

  async function inStore<T>(
    mode: IDBTransactionMode,
    work: (store: IDBObjectStore) => IDBRequest<T>,
  ): Promise<T | null> {
    const opened = await database();
    if (opened === null) return null;
    return settled(work(opened.transaction(STORE, mode).objectStore(STORE)));
  }

  return {
    async get(sandbox, path) {
      const kept = (await inStore<Draft | undefined>("readonly", (store) => store.get(keyOf(sandbox, path)))) ?? null;
      const last = parse(sessionStorage.getItem(PREFIX + keyOf(sandbox, path)));
      return newer(kept, last);
    },
    async paths(sandbox) {
      const keys =
        (await inStore("readonly", (store) =>
          store.getAllKeys(IDBKeyRange.bound(`${sandbox}:`, `${sandbox}:\uffff`)),
        )) ?? [];
      const last = Object.keys(sessionStorage).filter((key) => key.startsWith(`${PREFIX}${sandbox}:`));
      const paths = [...keys.map(String), ...last.map((key) => key.slice(PREFIX.length))];
      return [...new Set(paths.map((key) => key.slice(sandbox.length + 1)))];
    },
    async put(draft) {
      await inStore("readwrite", (store) => store.put(draft, keyOf(draft.sandbox, draft.path)));
      // Older than what was just written.
      sessionStorage.removeItem(PREFIX + keyOf(draft.sandbox, draft.path));
    },
    putNow(draft) {
      if (draft.text.length > NOW_CHARS_MAX) return;
      try {
        sessionStorage.setItem(PREFIX + keyOf(draft.sandbox, draft.path), JSON.stringify(draft));
      } catch {
        // No room: the draft in IndexedDB is at most a moment older.
      }
    },
    async remove(sandbox, path) {
      sessionStorage.removeItem(PREFIX + keyOf(sandbox, path));
      await inStore("readwrite", (store) => store.delete(keyOf(sandbox, path)));
    },
  };
}

export function newer(a: Draft | null, b: Draft | null): Draft | null {
  if (a === null || b === null) return a ?? b;
  return a.at >= b.at ? a : b;
}

function parse(text: string | null): Draft | null {
  if (text === null) return null;
  try {
    return JSON.parse(text) as Draft;
  } catch {
    return null;
  }
}

function open(): Promise<IDBDatabase> {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE);
  return settled(request);
}

function settled<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error("The browser's database failed"));
  });
}
