// What the server grants, what the host can do, and what is on the disk.
import type { Transport } from "./transport";
import type { components } from "./types.gen";

type Schemas = components["schemas"];
export type SystemInfo = Schemas["SystemInfo"];
export type Limits = Schemas["LimitsInfo"];
export type DiskUse = Schemas["DiskUse"];
export type DiskShare = Schemas["DiskShare"];

export function systemApi({ send }: Transport) {
  return {
    info: () => send<SystemInfo>("GET", "/system"),
    disk: () => send<DiskUse>("GET", "/system/disk"),
    health: () => send<Schemas["Health"]>("GET", "/healthz"),
  };
}
