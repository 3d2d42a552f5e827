// One file that is open in a tab: how it is shown, what the sandbox has, what was typed. Knows no editor and no network;
// `documents.svelte.ts` fills it, the editor reads it and tells it what is typed.
import type { ApiError } from "../api/errors";
import type { FileEntry } from "../api/files";
import { imageType, isMarkdown, isSvg } from "./file-content";
import { nameOf } from "./paths";
import type { Version } from "./save-conflict";

/** What can be shown of a file. `none` says why nothing is. */
export type Shown = "text" | "image" | "none";

/** What happened to the file in the sandbox since it was read, that its editor does not show. */
export type Outside = "changed" | "deleted";

/** The editor that shows a file now. */
export interface Editor {
  read(): string;
  /** Replaces the text as an edit that can be undone. */
  put(text: string): void;
  /** State to come back to: selection, scrolling, what can be undone. */
  keep(): unknown;
}

export class OpenFile {
  path = $state("");
  readonly name = $derived(nameOf(this.path));
  shown = $state<Shown>("none");
  /** Why it is not shown, for `none`. */
  reason = $state("");
  loading = $state(true);
  saving = $state(false);
  error = $state.raw<ApiError | null>(null);
  entry = $state.raw<FileEntry | null>(null);
  /** What the sandbox has, as far as is known; null for a file that is not there. */
  saved = $state.raw<string | null>(null);
  /** What `saved` was read from. */
  version: Version | null = null;
  /** The text differs from `saved`. */
  dirty = $state(false);
  /** The text was typed before this page was loaded. */
  restored = $state(false);
  outside = $state<Outside | null>(null);
  /** Goes up when the text was replaced while no editor showed it. */
  epoch = $state(0);
  /** A picture's address in this page. */
  imageUrl = $state<string | null>(null);
  /** Drawn instead of edited: markdown, and svg. */
  drawn = $state(false);
  /** What an editor kept when it went. */
  kept: unknown = null;

  private text = "";
  private editor: Editor | null = null;

  constructor(
    path: string,
    private readonly onEdited: (file: OpenFile) => void = () => {},
  ) {
    this.path = path;
    this.drawn = isSvg(path);
  }

  get canBeDrawn(): boolean {
    return this.shown === "text" && (isMarkdown(this.path) || isSvg(this.path));
  }

  get isImage(): boolean {
    return imageType(this.path) !== null;
  }

  /** What stands in the editor now. */
  current(): string {
    return this.editor?.read() ?? this.text;
  }

  /** Puts a text in; where an editor shows the file, as an edit that can be undone. */
  replace(text: string): void {
    if (this.editor !== null) {
      this.editor.put(text);
    } else {
      this.text = text;
      this.kept = null;
      this.epoch += 1;
    }
    this.dirty = text !== this.saved;
  }

  /** The file is known to hold `text` now, and what is typed is measured against that. */
  settle(text: string, version: Version | null): void {
    this.saved = text;
    this.version = version;
    this.outside = null;
    this.dirty = this.current() !== text;
    if (!this.dirty) this.restored = false;
  }

  /** The editor says that something was typed. */
  edited(dirty: boolean): void {
    this.dirty = dirty;
    if (!dirty) this.restored = false;
    this.onEdited(this);
  }

  attach(editor: Editor): void {
    this.editor = editor;
  }

  /** The editor goes; what it held stays here. */
  detach(editor: Editor): void {
    if (this.editor !== editor) return;
    this.text = editor.read();
    this.kept = editor.keep();
    this.editor = null;
  }

  showImage(blob: Blob): void {
    this.dropImage();
    this.imageUrl = URL.createObjectURL(blob);
  }

  dropImage(): void {
    if (this.imageUrl !== null) URL.revokeObjectURL(this.imageUrl);
    this.imageUrl = null;
  }
}
