// The picture before a file's name.
import {
  Code,
  Cog,
  File,
  FileArchive,
  FileSymlink,
  FileText,
  Folder,
  FolderOpen,
  FolderSymlink,
  Image,
} from "@lucide/svelte";
import type { Component } from "svelte";
import type { FileEntry } from "../api/client";
import { imageType, isMarkdown } from "./file-content";

/** Endings of programs and of data that programs read. */
const CODE =
  /\.(c|cc|cpp|cs|css|go|h|hpp|html?|java|js|json|jsx|kt|lua|mjs|php|pl|py|rb|rs|scss|sh|sql|svelte|swift|toml|ts|tsx|vue|xml|ya?ml|zig)$/i;

type Icon = Component<{ size?: number | string }>;

export function iconOf(
  entry: Pick<FileEntry, "type" | "path" | "name">,
  { open = false, directoryLink = false } = {},
): Icon {
  if (entry.type === "directory") return open ? FolderOpen : Folder;
  if (entry.type === "symlink") return directoryLink ? FolderSymlink : FileSymlink;
  if (entry.type === "other") return Cog;
  return iconOfName(entry.path);
}

export function iconOfName(path: string): Icon {
  if (imageType(path) !== null) return Image;
  if (isMarkdown(path) || /\.(txt|log|csv|rst)$/i.test(path)) return FileText;
  if (/\.(zip|gz|tgz|xz|zst|bz2|7z|tar|deb|whl|jar)$/i.test(path)) return FileArchive;
  if (CODE.test(path)) return Code;
  return File;
}

/** What something is, for who cannot see the picture. */
export function kindOf(entry: FileEntry, directoryLink = false): string {
  if (entry.type === "symlink") return directoryLink ? "link to a folder" : "link";
  if (entry.type === "other") return "device, socket or pipe";
  return entry.is_dir ? "folder" : "file";
}
