// Calls on the files inside a sandbox: look, read, write, move, remove, download, and what changes while one looks.
// Each of them wakes a paused sandbox.
import { segment, type Stream, type StreamOptions, type Transport, type UploadOptions } from "./transport";
import type { components } from "./types.gen";

type Schemas = components["schemas"];
export type FileEntry = Schemas["FileEntry"];
export type Listing = Schemas["Listing"];
export type FileChange = Schemas["FileChange"];
export type Written = Schemas["Written"];

/** Deepest listing that the API gives. */
const DEPTH_MAX = 64;

/** Bytes of a file, or as many of them as were wanted. */
export interface FileBytes {
  bytes: Uint8Array<ArrayBuffer>;
  /** The file has more than that. */
  truncated: boolean;
}

export function filesApi(transport: Transport) {
  const { send, stream, upload, url } = transport;
  const of = (id: string) => `/sandboxes/${segment(id)}`;
  const at = (id: string, path: string) =>
    `${of(id)}/files/${path.replace(/^\/+/, "").split("/").map(segment).join("/")}`;
  return {
    list: (id: string, path: string, signal?: AbortSignal) =>
      send<Listing>("GET", `${of(id)}/files`, {
        query: { path, depth: 1 },
        ...(signal === undefined ? {} : { signal }),
      }),
    /** How many files and folders lie below a folder. Fails with TOO_MANY_ENTRIES where that cannot be told. */
    countInside: async (id: string, path: string): Promise<number> => {
      const { entries } = await send<Listing>("GET", `${of(id)}/files`, { query: { path, depth: DEPTH_MAX } });
      return entries.length;
    },
    /** A symbolic link is not followed. */
    stat: (id: string, path: string) => send<FileEntry>("POST", `${of(id)}/fs/stat`, { body: { path } }),
    /** Reads at most `most` bytes; what comes after them is not fetched. */
    read: async (id: string, path: string, most: number, signal?: AbortSignal): Promise<FileBytes> => {
      const query = { path };
      const options = signal === undefined ? { query } : { query, signal };
      return firstBytes(await send("GET", `${of(id)}/fs/download`, { ...options, raw: true }), most);
    },
    /** Replaces the whole file, or makes it; links are followed and permission bits stay. */
    write: (id: string, path: string, content: Blob, options: UploadOptions = {}) =>
      upload<Written>(at(id, path), content, options),
    makeDir: (id: string, path: string) =>
      send<Schemas["DirMade"]>("POST", `${of(id)}/files/mkdir`, { body: { path } }),
    /** A file that is at `to` is replaced. */
    move: (id: string, from: string, to: string) =>
      send<Schemas["Moved"]>("POST", `${of(id)}/files/move`, { body: { from, to } }),
    remove: (id: string, path: string, recursive: boolean) =>
      send<Schemas["Removed"]>("DELETE", `${of(id)}/files`, { query: { path, recursive } }),
    /** Never comes back by itself: opening a watch wakes a paused sandbox, so its owner decides. */
    watch: (
      id: string,
      path: string,
      recursive: boolean,
      options: Omit<StreamOptions, "query" | "reconnect">,
    ): Stream => stream(`${of(id)}/files/watch`, { ...options, query: { path, recursive }, reconnect: false }),
    /** An address at which a browser downloads a file, or a folder as `.tar.gz`; good once. */
    downloadUrl: (id: string, path: string) => url(`${of(id)}/exports/download`, { path }),
  };
}

async function firstBytes(response: Response, most: number): Promise<FileBytes> {
  const reader = response.body?.getReader();
  const chunks: Uint8Array[] = [];
  let length = 0;
  while (reader !== undefined && length <= most) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    length += value.length;
  }
  const truncated = length > most;
  if (truncated) void reader?.cancel().catch(() => {});
  const bytes = new Uint8Array(Math.min(length, most));
  let place = 0;
  for (const chunk of chunks) {
    const part = chunk.subarray(0, bytes.length - place);
    bytes.set(part, place);
    place += part.length;
  }
  return { bytes, truncated };
}
