// How terminals look on this machine, for all sandboxes. Kept in the browser.
const KEY = "cove.terminal.preferences";

export const FONT_SIZE_MIN = 9;
export const FONT_SIZE_MAX = 24;
const FONT_SIZE = 13;

class TerminalPreferences {
  fontSize = $state(FONT_SIZE);
  /** Output is also put into a live region; costs speed, so it is off at first. */
  screenReader = $state(false);

  constructor() {
    try {
      const stored: unknown = JSON.parse(localStorage.getItem(KEY) ?? "null");
      if (typeof stored !== "object" || stored === null) return;
      if ("fontSize" in stored && typeof stored.fontSize === "number") this.fontSize = bounded(stored.fontSize);
      if ("screenReader" in stored) this.screenReader = stored.screenReader === true;
    } catch {
      // What cannot be read is as if it had never been chosen.
    }
  }

  /** By so many pixels; 0 goes back to the size at first. */
  changeFontSize(by: number): void {
    this.fontSize = by === 0 ? FONT_SIZE : bounded(this.fontSize + by);
    this.save();
  }

  toggleScreenReader(): void {
    this.screenReader = !this.screenReader;
    this.save();
  }

  private save(): void {
    try {
      localStorage.setItem(KEY, JSON.stringify({ fontSize: this.fontSize, screenReader: this.screenReader }));
    } catch {
      // Without storage the choice lasts as long as the page.
    }
  }
}

function bounded(size: number): number {
  return Math.min(FONT_SIZE_MAX, Math.max(FONT_SIZE_MIN, Math.round(size)));
}

export const preferences = new TerminalPreferences();
