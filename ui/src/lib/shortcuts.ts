// Keyboard shortcuts of the whole window: one listener, one list that the sheet on `?` shows. A shortcut without a
// modifier is silent while somebody types, in a terminal, or in an open dialog or menu.

export interface Shortcut {
  /** Such as `mod+k`, `shift+d`, `/`, `enter`; `mod` is Command on a Mac and Control elsewhere. */
  keys: string;
  label: string;
  /** Where the sheet lists it. */
  group: string;
  run: (event: KeyboardEvent) => void;
  enabled?: () => boolean;
  /** Works in a terminal too, where keys otherwise belong to the shell. */
  everywhere?: boolean;
  /** Not on the sheet: a second way to something that is on it. */
  hidden?: boolean;
}

export const isMac = /Mac|iPhone|iPad/.test(globalThis.navigator?.platform ?? "");

interface Chord {
  mod: boolean;
  shift: boolean;
  alt: boolean;
  key: string;
}

export function parseKeys(keys: string): Chord {
  const parts = keys.toLowerCase().split("+");
  const key = keys.endsWith("+") ? "+" : (parts.at(-1) ?? "");
  return { mod: parts.includes("mod"), shift: parts.includes("shift"), alt: parts.includes("alt"), key };
}

const NAMES: Record<string, string> = { " ": "space", esc: "escape" };

export function matches(chord: Chord, event: KeyboardEvent, mac = isMac): boolean {
  const mod = mac ? event.metaKey : event.ctrlKey;
  const other = mac ? event.ctrlKey : event.metaKey;
  const pressed = event.key.toLowerCase();
  if (mod !== chord.mod || other || event.altKey !== chord.alt) return false;
  // Characters such as `?` need shift on some keyboards and not on others: the character alone counts.
  const isCharacter = chord.key.length === 1 && !/[a-z0-9]/.test(chord.key);
  if (!isCharacter && event.shiftKey !== chord.shift) return false;
  return (NAMES[pressed] ?? pressed) === (NAMES[chord.key] ?? chord.key);
}

const SYMBOLS: Record<string, [mac: string, other: string]> = {
  mod: ["⌘", "Ctrl"],
  shift: ["⇧", "Shift"],
  alt: ["⌥", "Alt"],
  enter: ["↵", "Enter"],
  escape: ["Esc", "Esc"],
  space: ["Space", "Space"],
  arrowup: ["↑", "↑"],
  arrowdown: ["↓", "↓"],
  delete: ["⌫", "Del"],
};

/** The caps to draw: `mod+shift+p` is `Ctrl`, `Shift`, `P`. */
export function keyCaps(keys: string, mac = isMac): string[] {
  const parts = keys.endsWith("+") ? [...keys.slice(0, -1).split("+").filter(Boolean), "+"] : keys.split("+");
  return parts.map((part) => SYMBOLS[part.toLowerCase()]?.[mac ? 0 : 1] ?? part.toUpperCase());
}

export type Place = "page" | "typing" | "terminal" | "overlay";

/** Where a key was pressed, which decides what it may do. */
export function placeOf(target: EventTarget | null): Place {
  if (!(target instanceof Element)) return "page";
  if (target.closest(".xterm") !== null) return "terminal";
  if (target.closest("[role=dialog],[role=alertdialog],[role=menu],[role=listbox]") !== null) return "overlay";
  // Trees and lists with keys of their own: Delete there is about a file, never about the sandbox.
  if (target.closest("[data-own-keys]") !== null) return "typing";
  const isField = target.closest("input:not([type=checkbox]):not([type=radio]),textarea,select,[contenteditable=true]");
  return isField === null ? "page" : "typing";
}

export class Shortcuts {
  private readonly all: Shortcut[] = [];

  /** Adds shortcuts; gives the way to take them out again. Of two with the same keys the later one wins. */
  add(...shortcuts: Shortcut[]): () => void {
    this.all.push(...shortcuts);
    return () => {
      for (const shortcut of shortcuts) {
        const at = this.all.indexOf(shortcut);
        if (at >= 0) this.all.splice(at, 1);
      }
    };
  }

  /** What can be pressed here and now, in the order of adding. */
  list(): Shortcut[] {
    return this.all.filter((shortcut) => shortcut.hidden !== true && shortcut.enabled?.() !== false);
  }

  /** Runs what the key means here; true when it meant something. */
  handle(event: KeyboardEvent): boolean {
    if (event.defaultPrevented || event.isComposing) return false;
    const place = placeOf(event.target);
    const found = this.all.findLast((shortcut) => {
      const chord = parseKeys(shortcut.keys);
      if (!matches(chord, event) || shortcut.enabled?.() === false) return false;
      if (place === "terminal") return shortcut.everywhere === true;
      return place === "page" || (place === "typing" && chord.mod);
    });
    if (found === undefined) return false;
    event.preventDefault();
    event.stopPropagation();
    found.run(event);
    return true;
  }

  /** Begins to listen; gives the way to stop. Keys are taken before a terminal or an editor sees them. */
  listen(): () => void {
    const handler = (event: KeyboardEvent) => void this.handle(event);
    addEventListener("keydown", handler, { capture: true });
    return () => removeEventListener("keydown", handler, { capture: true });
  }
}
