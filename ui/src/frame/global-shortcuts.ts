// Keys that mean the same everywhere in the window: the palette, the sheet, create, pages, and every action of the sandbox
// that one looks at.
import type { Shortcut } from "../lib/shortcuts";
import { hrefOf } from "../lib/router.svelte";
import { theme } from "../lib/theme.svelte";
import { actionsFor, sandboxActions } from "../sandboxes/sandbox-actions";
import type { App } from "../state/app.svelte";

export function globalShortcuts(app: App): Shortcut[] {
  const { dialogs, router } = app;
  const togglePalette = () => (dialogs.palette = !dialogs.palette);
  return [
    { keys: "mod+k", label: "Command palette", group: "Cove", run: togglePalette },
    // In a terminal Control and K belong to the shell.
    {
      keys: "mod+shift+p",
      label: "Command palette, also in a terminal",
      group: "Cove",
      run: togglePalette,
      everywhere: true,
    },
    { keys: "n", label: "New sandbox", group: "Cove", run: () => (dialogs.create = true) },
    { keys: "?", label: "Keyboard shortcuts", group: "Cove", run: () => (dialogs.shortcuts = true) },
    { keys: "mod+,", label: "Settings", group: "Cove", run: () => router.go(hrefOf("settings")) },
    { keys: "mod+shift+l", label: "Light or dark", group: "Cove", run: () => theme.toggle() },
    {
      keys: "escape",
      label: "Back to the list",
      group: "Cove",
      run: () => router.toSandboxes(),
      enabled: () => router.route.name === "sandbox",
    },
    ...sandboxActions.map((action) => ({
      keys: action.shortcut ?? "",
      label: action.label,
      group: "Sandbox",
      enabled: () => {
        const sandbox = app.target.sandbox;
        // Enter belongs to whatever has the focus; it opens only a row of the list.
        if (action.id === "sandbox.open" && !inList(router.route.name)) return false;
        return sandbox !== undefined && actionsFor(sandbox, app.sandboxes.busy.has(sandbox.id), [action]).length > 0;
      },
      run: () => {
        const sandbox = app.target.sandbox;
        if (sandbox !== undefined) void action.run(sandbox, app);
      },
    })),
  ];
}

function inList(route: string): boolean {
  const focused = document.activeElement;
  return route === "sandboxes" && (focused === document.body || focused?.getAttribute("role") === "grid");
}
