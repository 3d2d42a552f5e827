// All that a sandbox's Files tab holds, kept while one looks at other tabs and sandboxes, and remembered over a reload:
// the tree, open files, uploads.
import type { Api } from "../api/client";
import { Documents } from "./documents.svelte";
import { browserDrafts, type Drafts } from "./drafts";
import { FileTree } from "./file-tree.svelte";
import { parentOf } from "./paths";
import { Uploads } from "./uploads.svelte";

interface Remembered {
  root: string;
  expanded: string[];
  showHidden: boolean;
  tabs: string[];
  active: string | null;
}

export class FilesSession {
  readonly tree: FileTree;
  readonly documents: Documents;
  readonly uploads: Uploads;
  private readonly key: string;
  private restored = false;

  constructor(
    readonly sandbox: string,
    readonly api: Api,
    private readonly drafts: Drafts,
  ) {
    this.key = `cove.files:${sandbox}`;
    const remember = () => this.remember();
    this.documents = new Documents(sandbox, api.files, drafts, remember);
    this.tree = new FileTree(
      sandbox,
      api.files,
      {
        changed: (path) => void this.documents.changedOutside(path),
        deleted: (path) => this.documents.deletedOutside(path),
        moved: (from, to) => this.documents.moved(from, to),
        missed: () => this.documents.checkAll(),
      },
      async () => (await api.sandboxes.get(sandbox)).state === "running",
      remember,
    );
    this.uploads = new Uploads(sandbox, api.files, (path) => this.tree.markStale(parentOf(path)));
    const before = read(this.key);
    this.tree.root = before.root;
    this.tree.showHidden = before.showHidden;
    for (const path of before.expanded) this.tree.expanded.add(path);
  }

  /** The sandbox runs, or is about to: what was open before a reload is opened again. */
  async start(): Promise<void> {
    this.tree.start();
    if (this.restored) return;
    this.restored = true;
    const before = read(this.key);
    const drafted = await this.drafts.paths(this.sandbox).catch(() => []);
    for (const path of new Set([...before.tabs, ...drafted])) this.documents.open(path);
    const active = this.documents.tabs.find((file) => file.path === before.active);
    if (active !== undefined) this.documents.show(active);
  }

  private remember(): void {
    // Before the start there is nothing but what is remembered already.
    if (!this.restored) return;
    const { tree, documents } = this;
    const now: Remembered = {
      root: tree.root,
      expanded: [...tree.expanded],
      showHidden: tree.showHidden,
      tabs: documents.tabs.map((file) => file.path),
      active: documents.active?.path ?? null,
    };
    try {
      sessionStorage.setItem(this.key, JSON.stringify(now));
    } catch {
      // No room: after a reload the tree begins at its root.
    }
  }
}

function read(key: string): Remembered {
  const nothing: Remembered = { root: "/workspace", expanded: [], showHidden: false, tabs: [], active: null };
  try {
    return { ...nothing, ...(JSON.parse(sessionStorage.getItem(key) ?? "{}") as Partial<Remembered>) };
  } catch {
    return nothing;
  }
}

const sessions = new Map<string, FilesSession>();
let drafts: Drafts | null = null;

/** The session of a sandbox; made when it is first looked at. */
export function filesSession(sandbox: string, api: Api): FilesSession {
  let session = sessions.get(sandbox);
  // Another connection is another server.
  if (session === undefined || session.api !== api) {
    session = new FilesSession(sandbox, api, (drafts ??= browserDrafts()));
    sessions.set(sandbox, session);
  }
  return session;
}

// A page that is left or hidden may never run again.
function keepAll(): void {
  for (const session of sessions.values()) session.documents.keepDraftsNow();
}
globalThis.addEventListener?.("pagehide", keepAll);
globalThis.document?.addEventListener("visibilitychange", () => document.hidden && keepAll());
