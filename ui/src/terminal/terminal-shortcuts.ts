// The keys of the terminal view. All carry Control and Shift together (Command and Shift on a Mac), which programs in a
// terminal do not see; browsers keep some of those for themselves, so T, W and N are not among them.
import type { Shortcut } from "../lib/shortcuts";
import { preferences } from "./preferences.svelte";
import type { TerminalWorkspace } from "./workspace.svelte";

export interface TerminalCommands {
  close: (pane: string | undefined) => Promise<void>;
  copy: () => Promise<void>;
}

const GROUP = "Terminal";

export function terminalShortcuts(workspace: TerminalWorkspace, { close, copy }: TerminalCommands): Shortcut[] {
  const hasPane = () => workspace.pane !== null;
  const search = () => workspace.pane?.screen?.search();
  const key = (keys: string, label: string, run: () => void, enabled = hasPane): Shortcut => ({
    ...{ keys, label, run, enabled },
    group: GROUP,
    everywhere: true,
  });
  const hidden = (shortcut: Shortcut): Shortcut => ({ ...shortcut, hidden: true });
  return [
    key(
      "mod+shift+enter",
      "New terminal",
      () => workspace.add(),
      () => workspace.ready,
    ),
    key("mod+shift+e", "Split right", () => workspace.split("row")),
    key("mod+shift+o", "Split down", () => workspace.split("column")),
    key("mod+shift+x", "Close terminal", () => void close(workspace.pane?.id)),
    key("mod+shift+f", "Find in terminal", search),
    // In a terminal this key belongs to the program; anywhere else on the page it would find nothing of it.
    { keys: "mod+f", label: "Find in terminal", group: GROUP, hidden: true, enabled: hasPane, run: search },
    key("mod+shift+c", "Copy the selection", () => void copy()),
    key("mod+shift+arrowleft", "Pane to the left", () => workspace.focusBeside("left")),
    key("mod+shift+arrowright", "Pane to the right", () => workspace.focusBeside("right")),
    key("mod+shift+arrowup", "Pane above", () => workspace.focusBeside("up")),
    key("mod+shift+arrowdown", "Pane below", () => workspace.focusBeside("down")),
    key("mod+shift+pagedown", "Next terminal", () => workspace.showNext(1)),
    key("mod+shift+pageup", "Previous terminal", () => workspace.showNext(-1)),
    key("mod+=", "Larger text", () => preferences.changeFontSize(1)),
    hidden(key("mod++", "Larger text", () => preferences.changeFontSize(1))),
    key("mod+-", "Smaller text", () => preferences.changeFontSize(-1)),
    key("mod+0", "Normal text size", () => preferences.changeFontSize(0)),
  ];
}
