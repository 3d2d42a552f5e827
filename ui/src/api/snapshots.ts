// Snapshots: take, list, look into, compare, change, restore, branch, delete.
import type { ForkBody, Sandbox } from "./sandboxes";
import { segment, type Transport } from "./transport";
import type { components } from "./types.gen";

type Schemas = components["schemas"];
export type Snapshot = Schemas["SnapshotRecord"];
export type SnapshotWithDependents = Schemas["SnapshotWithDependents"];
export type FileComparison = Schemas["FileComparison"];
export type FileDifference = Schemas["FileDifference"];

export interface SnapshotWords {
  comment?: string;
  name?: string;
  expiration_sec?: number;
}

/** Most that one page of the list may hold. */
const PAGE_MAX = 200;

export function snapshotsApi({ send }: Transport) {
  const one = (id: string) => `/snapshots/${segment(id)}`;
  const of = (sandbox: string) => `/sandboxes/${segment(sandbox)}`;
  const signalled = (signal?: AbortSignal) => (signal === undefined ? {} : { signal });
  return {
    /** All there are, those with a name too, newest first. */
    list: async (): Promise<Snapshot[]> => {
      const all: Snapshot[] = [];
      for (;;) {
        const query = { include_named: true, limit: PAGE_MAX, offset: all.length };
        const page = await send<Schemas["SnapshotPage"]>("GET", "/snapshots", { query, whole: true });
        all.push(...page.data);
        if (all.length >= page.total || page.data.length === 0) return all;
      }
    },
    ofSandbox: (sandbox: string) => send<Snapshot[]>("GET", `${of(sandbox)}/snapshots`),
    get: (id: string) => send<SnapshotWithDependents>("GET", one(id), { whole: true }),
    take: (sandbox: string, words: SnapshotWords) =>
      send<Snapshot>("POST", `${of(sandbox)}/snapshots`, { body: words }),
    update: (id: string, change: { name?: string | null; comment?: string | null }) =>
      send<Snapshot>("PATCH", one(id), { body: change }),
    restore: (sandbox: string, id: string) => send<Sandbox>("POST", `${of(sandbox)}/restore/${segment(id)}`),
    fork: (id: string, body: ForkBody = {}) => send<Sandbox>("POST", `${one(id)}/fork`, { body }),
    delete: (id: string) => send<Schemas["DeletedSnapshot"]>("DELETE", one(id)),
    deleteMany: (ids: string[]) => send<Schemas["DeletedMany"]>("POST", "/snapshots/delete", { body: { ids } }),
    /** Takes as long as a fork the first time: a hidden sandbox reads the snapshot's disk. `other` is a snapshot or a
     * sandbox, whose files are taken as they are now. */
    compare: (id: string, other: string, path: string, signal?: AbortSignal) =>
      send<FileComparison>("GET", `${one(id)}/compare`, { query: { with: other, path }, ...signalled(signal) }),
    /** The bytes of a file as it was. */
    file: async (id: string, path: string, signal?: AbortSignal): Promise<Blob> => {
      const options = { query: { path }, raw: true as const, ...signalled(signal) };
      return (await send("GET", `${one(id)}/files`, options)).blob();
    },
  };
}
