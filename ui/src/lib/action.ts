// One thing a user can do, described once: menus, keyboard and palette all draw and run the same object.
import type { Component } from "svelte";

export interface Action<Target, Context> {
  /** Such as `sandbox.pause`. */
  id: string;
  label: string;
  icon: Component<{ size?: number | string }>;
  /** As in `lib/shortcuts.ts`. */
  shortcut?: string;
  enabled: (target: Target) => boolean;
  run: (target: Target, context: Context) => void | Promise<void>;
  /** Something is lost: it is drawn in the colour of danger and asks first. */
  destructive?: boolean;
  /** A line above it in menus. */
  separate?: boolean;
}
