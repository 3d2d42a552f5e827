// What was dropped or chosen, as files with their place below the target. Folders are walked; empty ones are kept.

export interface UploadSource {
  file: File;
  /** Below the target folder: `logo.png`, or `site/img/logo.png`. */
  place: string;
}

export interface UploadBatch {
  files: UploadSource[];
  /** Folders that hold nothing, which no file brings along. */
  emptyFolders: string[];
}

/** Chosen in a dialog; a folder's files carry their place. */
export function fromFileList(list: Iterable<File>): UploadBatch {
  const files = [...list].map((file) => ({ file, place: file.webkitRelativePath || file.name }));
  return { files, emptyFolders: [] };
}

/** Dropped. To be called while the drop event is handled: its items are gone afterwards. */
export function fromDrop(data: DataTransfer): Promise<UploadBatch> {
  const entries = [...data.items].filter((item) => item.kind === "file").map((item) => item.webkitGetAsEntry());
  const known = entries.filter((entry) => entry !== null);
  if (known.length === 0) return Promise.resolve(fromFileList(data.files));
  return walk(known);
}

async function walk(entries: FileSystemEntry[]): Promise<UploadBatch> {
  const batch: UploadBatch = { files: [], emptyFolders: [] };
  const open = [...entries];
  for (let entry = open.shift(); entry !== undefined; entry = open.shift()) {
    const place = entry.fullPath.replace(/^\/+/, "");
    if (entry.isFile) {
      batch.files.push({ file: await fileOf(entry as FileSystemFileEntry), place });
      continue;
    }
    const inside = await childrenOf(entry as FileSystemDirectoryEntry);
    if (inside.length === 0) batch.emptyFolders.push(place);
    open.push(...inside);
  }
  return batch;
}

function fileOf(entry: FileSystemFileEntry): Promise<File> {
  return new Promise((resolve, reject) => entry.file(resolve, reject));
}

/** A reader gives a part at a time, and nothing at the end. */
async function childrenOf(directory: FileSystemDirectoryEntry): Promise<FileSystemEntry[]> {
  const reader = directory.createReader();
  const children: FileSystemEntry[] = [];
  for (;;) {
    const part = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
    if (part.length === 0) return children;
    children.push(...part);
  }
}

/** What stands directly in the target folder: the first step of each place. */
export function topNames(batch: UploadBatch): string[] {
  const places = [...batch.files.map(({ place }) => place), ...batch.emptyFolders];
  return [...new Set(places.map((place) => place.split("/")[0] ?? place))];
}
