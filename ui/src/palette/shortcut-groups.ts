// Shortcuts as the sheet lists them: by group, in the order in which they were added, each pair of label and keys once.
import type { Shortcut } from "../lib/shortcuts";

export interface ShortcutGroup {
  title: string;
  shortcuts: Shortcut[];
}

export function groupShortcuts(shortcuts: Shortcut[]): ShortcutGroup[] {
  const groups = new Map<string, Map<string, Shortcut>>();
  for (const shortcut of shortcuts) {
    const group = groups.get(shortcut.group) ?? new Map<string, Shortcut>();
    group.set(`${shortcut.label} ${shortcut.keys}`, shortcut);
    groups.set(shortcut.group, group);
  }
  return [...groups].map(([title, group]) => ({ title, shortcuts: [...group.values()] }));
}
