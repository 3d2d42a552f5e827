// Calls on sandboxes as wholes: their life, settings, environment and figures of use.
import { segment, type Transport } from "./transport";
import type { components } from "./types.gen";

type Schemas = components["schemas"];
export type Sandbox = Schemas["SandboxRecord"];
export type CreateBody = Partial<Schemas["CreateBody"]>;
export type UpdateBody = Partial<Schemas["UpdateBody"]>;
export type ForkBody = Partial<Schemas["ForkBody"]>;
export type BulkOutcome = Schemas["BulkOutcome"];
export type EnvVariable = Schemas["EnvVariable"];
export type Readiness = Schemas["Readiness"];
export type Usage = Schemas["UsageRecord"];

export function sandboxesApi({ send }: Transport) {
  const of = (id: string) => `/sandboxes/${segment(id)}`;
  return {
    list: (signal?: AbortSignal) => send<Sandbox[]>("GET", "/sandboxes", signal === undefined ? {} : { signal }),
    get: (id: string) => send<Sandbox>("GET", of(id)),
    /** With `wait: false` it answers as soon as the sandbox is recorded: it is still being made then. `key` makes a
     * repeated call the same call. */
    create: (body: CreateBody, { wait = false, key }: { wait?: boolean; key?: string } = {}) =>
      send<Sandbox>("POST", "/sandboxes", {
        body,
        query: { wait },
        ...(key === undefined ? {} : { headers: { "idempotency-key": key } }),
      }),
    update: (id: string, body: UpdateBody) => send<Sandbox>("PATCH", of(id), { body }),
    destroy: (id: string) => send<Schemas["DestroyedRecord"]>("DELETE", of(id)),
    pause: (id: string) => send<Sandbox>("POST", `${of(id)}/pause`),
    resume: (id: string) => send<Sandbox>("POST", `${of(id)}/resume`, { body: {} }),
    stop: (id: string) => send<Sandbox>("POST", `${of(id)}/stop`),
    extend: (id: string, timeout_sec?: number) =>
      send<Sandbox>("POST", `${of(id)}/extend`, { body: timeout_sec === undefined ? {} : { timeout_sec } }),
    fork: (id: string, body: ForkBody = {}) => send<Sandbox>("POST", `${of(id)}/fork`, { body }),
    snapshot: (id: string, body: { comment?: string; name?: string } = {}) =>
      send<Schemas["SnapshotRecord"]>("POST", `${of(id)}/snapshots`, { body }),
    setTags: (id: string, tags: string[]) => send<Schemas["Tags"]>("PATCH", `${of(id)}/tags`, { body: { tags } }),
    readiness: (id: string) => send<Readiness>("GET", `${of(id)}/readiness`),
    usage: (id: string) => send<Usage>("GET", `${of(id)}/usage`),
    env: (id: string) => send<EnvVariable[]>("GET", `${of(id)}/env`),
    setEnv: (id: string, vars: { key: string; value: string }[]) =>
      send<EnvVariable[]>("PUT", `${of(id)}/env`, { body: { vars } }),
    deleteEnv: (id: string, key: string) => send<unknown>("DELETE", `${of(id)}/env/${segment(key)}`),
    pauseMany: (ids: string[]) => send<BulkOutcome>("POST", "/bulk/sandboxes/pause", { body: { ids } }),
    resumeMany: (ids: string[]) => send<BulkOutcome>("POST", "/bulk/sandboxes/resume", { body: { ids } }),
    destroyMany: (ids: string[]) => send<BulkOutcome>("POST", "/bulk/sandboxes/destroy", { body: { ids } }),
  };
}
