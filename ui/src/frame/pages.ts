// The pages of the sidebar, and the components that draw them. A page whose component is not there is not in the list.
import { Boxes, HardDrive, Layers, Settings } from "@lucide/svelte";
import type { Component } from "svelte";

type Load = () => Promise<{ default: Component }>;

const found = import.meta.glob<{ default: Component }>([
  "../templates/TemplatesPage.svelte",
  "../disk/DiskPage.svelte",
  "../settings/SettingsPage.svelte",
]);

export interface PageEntry {
  id: "sandboxes" | "templates" | "disk" | "settings";
  label: string;
  /** `null` for the list of sandboxes, which is always there. */
  load: Load | null;
}

const ALL: (Omit<PageEntry, "load"> & { path: string | null })[] = [
  { id: "sandboxes", label: "Sandboxes", path: null },
  { id: "templates", label: "Templates", path: "../templates/TemplatesPage.svelte" },
  { id: "disk", label: "Disk", path: "../disk/DiskPage.svelte" },
  { id: "settings", label: "Settings", path: "../settings/SettingsPage.svelte" },
];

export const pages: PageEntry[] = ALL.flatMap(({ path, ...entry }) => {
  const load = path === null ? null : found[path];
  return load === undefined ? [] : [{ ...entry, load }];
});

export const pageIcons = { sandboxes: Boxes, templates: Layers, disk: HardDrive, settings: Settings };
