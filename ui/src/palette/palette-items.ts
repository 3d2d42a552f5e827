// What the palette offers for what was typed: pure choice and order; drawing is in `CommandPalette.svelte`.
import type { Component } from "svelte";

export interface PaletteItem {
  id: string;
  label: string;
  /** Beside the label, and searched too: an id, a state. */
  note?: string;
  icon: Component<{ size?: number | string }>;
  shortcut?: string | undefined;
  destructive?: boolean | undefined;
  run: () => void;
}

export interface PaletteGroup {
  title: string;
  items: PaletteItem[];
}

/** More are not read anyway. */
const ITEMS_MAX = 12;

/** How well a text fits: begins with it, has a word that does, has it, has its letters in order; 0 when it does not. */
export function score(text: string, query: string): number {
  const [haystack, needle] = [text.toLowerCase(), query.toLowerCase().trim()];
  if (needle === "") return 1;
  const at = haystack.indexOf(needle);
  if (at === 0) return 4;
  if (at > 0) return /[\s\-_/.]/.test(haystack.charAt(at - 1)) ? 3 : 2;
  let from = 0;
  for (const letter of needle.replaceAll(" ", "")) {
    from = haystack.indexOf(letter, from) + 1;
    if (from === 0) return 0;
  }
  return 1;
}

/** The groups with what fits, best first, equal ones in their own order; groups with nothing are left out. */
export function choose(groups: PaletteGroup[], query: string): PaletteGroup[] {
  return groups
    .map(({ title, items }) => ({
      title,
      items: items
        .map((item) => ({ item, value: Math.max(score(item.label, query), score(item.note ?? "", query) * 0.9) }))
        .filter(({ value }) => value >= (query.trim() === "" ? 0 : 0.95) || value > 1)
        .sort((a, b) => b.value - a.value)
        .slice(0, ITEMS_MAX)
        .map(({ item }) => item),
    }))
    .filter(({ items }) => items.length > 0);
}
