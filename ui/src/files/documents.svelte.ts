// The files that are open in tabs: reading, saving with a look at what the sandbox has meanwhile, and drafts of what was
// typed. Draws nothing; the watch of the tree tells it what happened outside.
import { ApiError, asApiError } from "../api/errors";
import type { filesApi, FileEntry } from "../api/files";
import { bytes } from "../lib/format";
import { newDraft, type Draft, type Drafts } from "./drafts";
import { IMAGE_BYTES_MAX, imageType, isSvg, TEXT_BYTES_MAX, textOf } from "./file-content";
import { OpenFile } from "./open-file.svelte";
import { afterMove, isWithin } from "./paths";
import { checkVersions, judge, sameVersion, versionOf } from "./save-conflict";

export type FilesApi = ReturnType<typeof filesApi>;

/** A save that waits for a decision. */
export interface Conflict {
  file: OpenFile;
  mine: string;
  /** What the sandbox has: a text, or null when it is no text or nothing. */
  theirs: string | null;
  entry: FileEntry | null;
}

const DRAFT_DELAY_MS = 400;

export class Documents {
  tabs = $state.raw<OpenFile[]>([]);
  active = $state.raw<OpenFile | null>(null);
  conflict = $state.raw<Conflict | null>(null);
  readonly unsaved = $derived(this.tabs.filter((file) => file.dirty));
  private readonly draftTimers = new Map<OpenFile, ReturnType<typeof setTimeout>>();

  constructor(
    private readonly sandbox: string,
    private readonly api: FilesApi,
    private readonly drafts: Drafts,
    /** Something of what is open changed: for whoever remembers it. */
    private readonly onTabs: () => void = () => {},
  ) {}

  /** Shows a file, in the tab that it has or a new one. */
  open(path: string): OpenFile {
    let file = this.find(path);
    if (file === undefined) {
      file = new OpenFile(path, (edited) => this.draftLater(edited));
      this.tabs = [...this.tabs, file];
      void this.load(file);
    }
    this.show(file);
    return file;
  }

  find(path: string): OpenFile | undefined {
    return this.tabs.find((file) => file.path === path);
  }

  show(file: OpenFile): void {
    this.active = file;
    this.onTabs();
  }

  /** Takes a tab away, with what was typed in it and not saved. */
  close(file: OpenFile): void {
    const at = this.tabs.indexOf(file);
    if (at < 0) return;
    this.tabs = this.tabs.filter((other) => other !== file);
    if (this.active === file) this.active = this.tabs[Math.min(at, this.tabs.length - 1)] ?? null;
    if (this.conflict?.file === file) this.conflict = null;
    file.dropImage();
    this.forgetDraft(file);
    this.onTabs();
  }

  /** Reads a file anew, then puts back what was typed in it before the page was loaded. */
  async load(file: OpenFile): Promise<void> {
    file.loading = true;
    file.error = null;
    const draft = await this.drafts.get(this.sandbox, file.path);
    try {
      await this.read(file);
    } catch (thrown) {
      const error = asApiError(thrown);
      if (draft === null) file.error = error;
      else this.restoreWithoutFile(file, draft, error);
      return;
    } finally {
      file.loading = false;
    }
    if (draft !== null && file.shown === "text") this.restore(file, draft);
  }

  private async read(file: OpenFile): Promise<void> {
    const entry = await this.api.stat(this.sandbox, file.path);
    file.entry = entry;
    const problem = unreadable(entry);
    if (problem !== null) return this.showNothing(file, problem);
    const type = imageType(file.path);
    if (type !== null && !isSvg(file.path)) return this.readImage(file, type);
    const { bytes: content, truncated } = await this.api.read(this.sandbox, file.path, TEXT_BYTES_MAX);
    if (truncated) return this.showNothing(file, tooLarge(entry.is_symlink ? null : entry.size, TEXT_BYTES_MAX));
    const text = textOf(content);
    if (text === null) return this.showNothing(file, "It holds no text that can be edited.");
    file.shown = "text";
    if (type !== null) file.showImage(new Blob([content], { type }));
    const wasClean = !file.dirty;
    file.saved = text;
    if (wasClean) file.replace(text);
    file.settle(text, versionOf(entry));
  }

  private async readImage(file: OpenFile, type: string): Promise<void> {
    const { bytes: content, truncated } = await this.api.read(this.sandbox, file.path, IMAGE_BYTES_MAX);
    if (truncated) return this.showNothing(file, tooLarge(file.entry?.size ?? null, IMAGE_BYTES_MAX));
    file.showImage(new Blob([content], { type }));
    file.version = file.entry === null ? null : versionOf(file.entry);
    file.shown = "image";
    file.outside = null;
  }

  private showNothing(file: OpenFile, reason: string): void {
    file.shown = "none";
    file.reason = reason;
    file.version = file.entry === null ? null : versionOf(file.entry);
    file.outside = null;
  }

  private restore(file: OpenFile, draft: Draft): void {
    if (draft.text === file.saved) return this.forgetDraft(file);
    const now = file.version;
    file.replace(draft.text);
    file.restored = true;
    // The edit began from what was there then: saving will see whether that is still so.
    file.version = draft.base;
    if (!sameVersion(draft.base, now)) file.outside = "changed";
  }

  /** The file cannot be read: what was typed in it is all there is, and is shown. */
  private restoreWithoutFile(file: OpenFile, draft: Draft, error: ApiError): void {
    const gone = error.code === "NOT_FOUND";
    file.shown = "text";
    file.saved = null;
    file.version = draft.base;
    file.replace(draft.text);
    file.restored = true;
    file.outside = gone ? "deleted" : null;
    file.error = gone ? null : error;
  }

  /** Saves what stands in the editor. False when it was not saved: `conflict` or the thrown error says why. */
  async save(file: OpenFile, { force = false }: { force?: boolean } = {}): Promise<boolean> {
    if (file.shown !== "text" || file.saving) return false;
    file.saving = true;
    try {
      const mine = file.current();
      if (!force && !(await this.mayOverwrite(file, mine))) return false;
      await this.api.write(this.sandbox, file.path, new Blob([mine]));
      const entry = await this.api.stat(this.sandbox, file.path);
      file.entry = entry;
      file.error = null;
      file.settle(mine, versionOf(entry));
      if (file.isImage) file.showImage(new Blob([mine], { type: imageType(file.path) ?? "" }));
      if (this.conflict?.file === file) this.conflict = null;
      if (file.dirty) this.draftLater(file);
      else this.forgetDraft(file);
      return true;
    } finally {
      file.saving = false;
    }
  }

  /** Looks at what the sandbox has; sets `conflict` when somebody has to decide. */
  private async mayOverwrite(file: OpenFile, mine: string): Promise<boolean> {
    const entry = await this.statOrNull(file.path);
    const check = checkVersions(file.version, entry === null ? null : versionOf(entry), entry?.is_symlink ?? false);
    if (check === "save") return true;
    if (check === "missing" || entry === null) {
      this.conflict = { file, mine, theirs: null, entry: null };
      return false;
    }
    const theirs = await this.readText(file.path);
    if (judge(file.saved, mine, theirs) !== "conflict") return true;
    this.conflict = { file, mine, theirs, entry };
    return false;
  }

  /** Shows both texts of a file that was changed outside, without saving. */
  async compare(file: OpenFile): Promise<void> {
    const entry = await this.statOrNull(file.path);
    const theirs = entry === null ? null : await this.readText(file.path);
    this.conflict = { file, mine: file.current(), theirs, entry };
  }

  /** The decision to take what the sandbox has; it is put in as an edit, so that it can be undone. */
  takeTheirs({ file, theirs, entry }: Conflict): void {
    this.conflict = null;
    if (theirs === null || entry === null) return;
    file.saved = theirs;
    file.replace(theirs);
    file.settle(theirs, versionOf(entry));
    this.forgetDraft(file);
  }

  /** Something happened to a file that may be open. */
  async changedOutside(path: string): Promise<void> {
    const file = this.find(path);
    if (file === undefined || file.loading || file.saving) return;
    let entry: FileEntry | null;
    try {
      entry = await this.statOrNull(path);
    } catch {
      // The next event or the next save looks again.
      return;
    }
    if (file.saving || file.loading || !this.tabs.includes(file)) return;
    if (entry === null) {
      file.outside = "deleted";
      return;
    }
    const same = sameVersion(file.version, versionOf(entry)) && !entry.is_symlink;
    if (same) {
      file.outside = null;
    } else if (file.dirty) {
      file.outside = (await this.readText(path).catch(() => null)) === file.saved ? null : "changed";
    } else {
      await this.read(file).catch((error: unknown) => (file.error = asApiError(error)));
    }
  }

  deletedOutside(path: string): void {
    for (const file of this.tabs) if (isWithin(file.path, path)) file.outside = "deleted";
  }

  /** A file, or a folder above it, has a new name: its tab goes on with that. */
  moved(from: string, to: string): void {
    // A program that saves by renaming a new file over the old one.
    if (this.find(to) !== undefined) {
      void this.changedOutside(to);
      return;
    }
    for (const file of this.tabs) {
      if (!isWithin(file.path, from)) continue;
      void this.drafts.remove(this.sandbox, file.path);
      file.path = afterMove(file.path, from, to);
      if (file.dirty) this.draftLater(file);
    }
    this.onTabs();
  }

  /** Changes may have been missed. */
  checkAll(): void {
    for (const file of this.tabs) void this.changedOutside(file.path);
  }

  private async statOrNull(path: string): Promise<FileEntry | null> {
    try {
      return await this.api.stat(this.sandbox, path);
    } catch (error) {
      if (error instanceof ApiError && error.code === "NOT_FOUND") return null;
      throw error;
    }
  }

  private async readText(path: string): Promise<string | null> {
    const { bytes: content, truncated } = await this.api.read(this.sandbox, path, TEXT_BYTES_MAX);
    return truncated ? null : textOf(content);
  }

  private draftLater(file: OpenFile): void {
    clearTimeout(this.draftTimers.get(file));
    this.draftTimers.set(
      file,
      setTimeout(() => void this.keepDraft(file), DRAFT_DELAY_MS),
    );
  }

  private async keepDraft(file: OpenFile): Promise<void> {
    this.draftTimers.delete(file);
    if (!file.dirty) return this.forgetDraft(file);
    await this.drafts.put(newDraft(this.sandbox, file.path, file.current(), file.version)).catch(() => {});
  }

  private forgetDraft(file: OpenFile): void {
    clearTimeout(this.draftTimers.get(file));
    this.draftTimers.delete(file);
    void this.drafts.remove(this.sandbox, file.path).catch(() => {});
  }

  /** The page may go at any moment: what was typed in the last one is written at once. */
  keepDraftsNow(): void {
    for (const file of this.unsaved) {
      if (!this.draftTimers.has(file)) continue;
      const draft = newDraft(this.sandbox, file.path, file.current(), file.version);
      this.drafts.putNow(draft);
      void this.drafts.put(draft).catch(() => {});
    }
  }
}

/** Why a file is not even read, or null. */
function unreadable(entry: FileEntry): string | null {
  if (entry.type === "other") return "It is a device, a socket or a pipe: it has no content that could be shown.";
  if (entry.is_dir) return "It is a folder.";
  const most = imageType(entry.path) === null ? TEXT_BYTES_MAX : IMAGE_BYTES_MAX;
  return entry.size > most ? tooLarge(entry.size, most) : null;
}

function tooLarge(size: number | null, most: number): string {
  return `It has ${size === null ? "more than can be shown" : bytes(size)}; up to ${bytes(most)} are opened here.`;
}
