// The page's tokens as xterm's colours. xterm reads no CSS, so it is given plain values anew when light turns dark.
import type { ISearchDecorationOptions } from "@xterm/addon-search";
import type { ITheme } from "@xterm/xterm";

const ANSI = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"] as const;

/** The colours of the element's tokens, as they are now. */
export function terminalTheme(element: Element): ITheme {
  const token = reader(element);
  const theme: ITheme = {
    background: token("--bg"),
    foreground: token("--text"),
    cursor: token("--accent"),
    cursorAccent: token("--bg"),
    selectionBackground: `${token("--accent")}47`,
    scrollbarSliderBackground: `${token("--text-faint")}55`,
    scrollbarSliderHoverBackground: `${token("--text-faint")}88`,
    scrollbarSliderActiveBackground: `${token("--text-faint")}bb`,
    overviewRulerBorder: token("--bg"),
  };
  for (const name of ANSI) {
    theme[name] = token(`--ansi-${name}`);
    theme[`bright${name[0]?.toUpperCase()}${name.slice(1)}` as "brightRed"] = token(`--ansi-bright-${name}`);
  }
  return theme;
}

export function searchColours(element: Element): ISearchDecorationOptions {
  const token = reader(element);
  return {
    matchBackground: token("--warn-soft"),
    matchBorder: token("--warn"),
    matchOverviewRuler: token("--warn"),
    activeMatchBackground: token("--accent-soft"),
    activeMatchBorder: token("--accent"),
    activeMatchColorOverviewRuler: token("--accent"),
  };
}

export function monoFont(element: Element): string {
  return getComputedStyle(element).getPropertyValue("--font-mono").trim() || "monospace";
}

/** Tokens as `#rrggbb`, whatever notation they are written in: a canvas knows them all. */
function reader(element: Element): (name: string) => string {
  const style = getComputedStyle(element);
  const context = document.createElement("canvas").getContext("2d");
  return (name) => {
    const value = style.getPropertyValue(name).trim();
    if (/^#[0-9a-f]{6}$/i.test(value) || context === null) return value;
    context.fillStyle = value;
    context.fillRect(0, 0, 1, 1);
    const [red = 0, green = 0, blue = 0] = context.getImageData(0, 0, 1, 1).data;
    return `#${[red, green, blue].map((part) => part.toString(16).padStart(2, "0")).join("")}`;
  };
}
