// What one can do with files in the tree: make, rename, move, remove, upload, download. Asks before something is lost and
// says what went wrong; the tree shows what came of it.
import { ApiError, type Sandbox } from "../api/client";
import { count } from "../lib/format";
import type { App } from "../state/app.svelte";
import type { FilesSession } from "./session.svelte";
import { dropInto, join, nameOf, nameProblem, parentOf, topmost } from "./paths";
import { topNames, type UploadBatch } from "./upload-items";

type Needs = Pick<App, "api" | "dialogs" | "toasts">;

export class FileActions {
  constructor(
    private readonly sandbox: Sandbox["id"],
    private readonly session: FilesSession,
    private readonly app: Needs,
  ) {}

  newFile(directory: string): void {
    this.app.dialogs.ask({
      title: "New file",
      label: "Name",
      yes: "Create",
      placeholder: "notes.md or src/main.py",
      hint: `In ${directory}. A slash makes folders.`,
      submit: async (name) => {
        const path = await this.freePath(directory, name);
        await this.app.api.files.write(this.sandbox, path, new Blob([]));
        await this.shown(path);
        this.session.documents.open(path);
      },
    });
  }

  newFolder(directory: string): void {
    this.app.dialogs.ask({
      title: "New folder",
      label: "Name",
      yes: "Create",
      hint: `In ${directory}. A slash makes folders in folders.`,
      submit: async (name) => {
        const path = await this.freePath(directory, name);
        await this.app.api.files.makeDir(this.sandbox, path);
        await this.shown(path);
      },
    });
  }

  /** Gives a file or folder another name in its folder. Throws what is to be shown beside the name. */
  async rename(path: string, name: string): Promise<string> {
    if (name === nameOf(path)) return path;
    const to = await this.freePath(parentOf(path), name, { slashes: false });
    await this.move(path, to);
    await this.session.tree.load(parentOf(to));
    return to;
  }

  /** Moves what was dropped on a folder. */
  async drop(paths: readonly string[], directory: string): Promise<void> {
    const drops = dropInto(paths, directory);
    if (drops === null) return;
    try {
      const { entries } = await this.app.api.files.list(this.sandbox, directory);
      const taken = drops.map(({ to }) => nameOf(to)).filter((name) => entries.some((entry) => entry.name === name));
      if (!(await this.mayReplace(taken, directory))) return;
      for (const { from, to } of drops) await this.move(from, to);
    } catch (error) {
      this.app.toasts.failure(`Cannot move into ${directory}`, error);
    }
  }

  private async move(from: string, to: string): Promise<void> {
    await this.app.api.files.move(this.sandbox, from, to);
    this.session.tree.renamed(from, to);
    this.session.documents.moved(from, to);
  }

  /** Removes after a yes, which is told how much goes. */
  async remove(paths: readonly string[]): Promise<void> {
    const gone = topmost(paths);
    const [first] = gone;
    if (first === undefined) return;
    const inside = await this.countInside(gone);
    const what = gone.length === 1 ? `“${nameOf(first)}”` : count(gone.length, "item");
    const yes = await this.app.dialogs.confirm({
      title: `Delete ${what}?`,
      text: `${inside}There is no trash: only a snapshot taken earlier would still have it.`,
      yes: "Delete",
      destructive: true,
      ...(gone.length > 1 ? { items: gone } : {}),
    });
    if (!yes) return;
    for (const path of gone) {
      try {
        await this.app.api.files.remove(this.sandbox, path, true);
        this.session.documents.deletedOutside(path);
      } catch (error) {
        this.app.toasts.failure(`Cannot delete ${path}`, error);
      }
      this.session.tree.markStale(parentOf(path));
    }
  }

  /** In words: how much lies in the folders among `paths`. */
  private async countInside(paths: readonly string[]): Promise<string> {
    const tree = this.session.tree;
    const folders = paths.filter((path) => tree.entry(path)?.is_dir);
    if (folders.length === 0) return "";
    try {
      const counts = await Promise.all(folders.map((path) => this.app.api.files.countInside(this.sandbox, path)));
      const inside = counts.reduce((sum, number) => sum + number, 0);
      return inside === 0
        ? "It is empty. "
        : `With all that is inside: ${count(inside, "file or folder", "files and folders")}. `;
    } catch (error) {
      const many = error instanceof ApiError && error.code === "TOO_MANY_ENTRIES";
      return many ? "With all that is inside: more files than can be counted here. " : "With all that is inside. ";
    }
  }

  async upload(reading: UploadBatch | Promise<UploadBatch>, directory: string): Promise<void> {
    try {
      const batch = await reading;
      if (batch.files.length === 0 && batch.emptyFolders.length === 0) return;
      const { entries } = await this.app.api.files.list(this.sandbox, directory);
      const taken = topNames(batch).filter((name) => entries.some((entry) => entry.name === name));
      if (!(await this.mayReplace(taken, directory))) return;
      await this.session.uploads.add(batch, directory);
    } catch (error) {
      this.app.toasts.failure(`Cannot upload to ${directory}`, error);
    }
  }

  /** A file as it is, a folder as an archive. */
  async download(path: string): Promise<void> {
    try {
      // Its error can be shown here; that of the download itself only the browser sees.
      const entry = await this.app.api.files.stat(this.sandbox, path);
      const url = await this.app.api.files.downloadUrl(this.sandbox, path);
      const link = document.createElement("a");
      link.href = url;
      link.download = entry.is_dir ? `${nameOf(path)}.tar.gz` : nameOf(path);
      document.body.append(link);
      link.click();
      link.remove();
    } catch (error) {
      this.app.toasts.failure(`Cannot download ${path}`, error);
    }
  }

  async copyPath(path: string): Promise<void> {
    await navigator.clipboard.writeText(path);
    this.app.toasts.success("Path copied");
  }

  private mayReplace(taken: readonly string[], directory: string): Promise<boolean> {
    if (taken.length === 0) return Promise.resolve(true);
    const [only] = taken;
    const what = taken.length === 1 ? `“${only}”` : count(taken.length, "item");
    return this.app.dialogs.confirm({
      title: `Replace ${what}?`,
      text: `${directory} already has ${taken.length === 1 ? "that name" : "these names"}. What files of the same name hold now is lost.`,
      yes: "Replace",
      destructive: true,
      ...(taken.length > 1 ? { items: [...taken] } : {}),
    });
  }

  /** The path of a new name, when it can be one and nothing is there. */
  private async freePath(directory: string, typed: string, { slashes = true } = {}): Promise<string> {
    const name = typed.trim();
    const problem = nameProblem(name, { slashes });
    if (problem !== null) throw new Error(problem);
    const path = join(directory, name);
    if (await this.exists(path)) throw new Error(`${path} is there already.`);
    return path;
  }

  private async exists(path: string): Promise<boolean> {
    try {
      await this.app.api.files.stat(this.sandbox, path);
      return true;
    } catch (error) {
      if (error instanceof ApiError && error.code === "NOT_FOUND") return false;
      throw error;
    }
  }

  /** The tree has it and shows it. */
  private async shown(path: string): Promise<void> {
    await this.session.tree.load(parentOf(path));
    await this.session.tree.reveal(path);
  }
}
