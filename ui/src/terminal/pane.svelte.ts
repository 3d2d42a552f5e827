// One pane as the tabs see it: its connection, its title, and what its screen can be asked to do.
import { TerminalLink, type LinkHost } from "./terminal-link.svelte";

/** What the component that draws the pane can do. */
export interface PaneScreen {
  focus: () => void;
  search: () => void;
  selection: () => string;
  selectAll: () => void;
  paste: (text: string) => void;
  clear: () => void;
}

export class Pane {
  readonly link: TerminalLink;
  /** As the program in it says. */
  title = $state("");
  /** Something came while nobody could see it. */
  unseen = $state(false);
  screen: PaneScreen | null = null;

  constructor(
    readonly id: string,
    session: string | null,
    host: LinkHost,
  ) {
    this.link = new TerminalLink(host, session);
  }

  /** Its shell is over; there is nothing that closing it could lose. */
  get over(): boolean {
    const { name } = this.link.state;
    return name === "ended" || (name === "failed" && this.link.session === null);
  }
}
