// Light, dark, or as the system says. Kept in the browser; the sheet of tokens reads `data-theme`.
const KEY = "cove.theme";
export type Theme = "system" | "light" | "dark";

class ThemeState {
  choice = $state<Theme>("system");

  constructor() {
    const stored = read();
    if (stored === "light" || stored === "dark") this.choose(stored);
  }

  choose(theme: Theme): void {
    this.choice = theme;
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // Without storage the choice lasts as long as the page.
    }
  }

  /** What is shown now. */
  get shown(): "light" | "dark" {
    if (this.choice !== "system") return this.choice;
    return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  }

  toggle(): void {
    this.choose(this.shown === "dark" ? "light" : "dark");
  }
}

function read(): string | null {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null;
  }
}

export const theme = new ThemeState();

/** Calls `changed` when the page turns light or dark; gives the way to stop. */
export function onThemeChange(changed: () => void): () => void {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = new MutationObserver(changed);
  system.addEventListener("change", changed);
  chosen.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
  return () => {
    system.removeEventListener("change", changed);
    chosen.disconnect();
  };
}
