// Terminal sessions of a sandbox. They live on the server until their shell ends, whoever looks at them.
// Listing or attaching wakes a paused sandbox: callers look at its state first.
import { segment, type Transport } from "./transport";
import type { components } from "./types.gen";

type Schemas = components["schemas"];
export type TerminalRecord = Schemas["TerminalRecord"];
export type TerminalBody = Schemas["TerminalBody"];

export interface TerminalSize {
  cols: number;
  rows: number;
}

export function terminalApi({ send, socket }: Transport) {
  const of = (id: string) => `/sandboxes/${segment(id)}/terminal`;
  return {
    /** The open sessions, oldest first. */
    list: (id: string) => send<TerminalRecord[]>("GET", of(id)),
    open: (id: string, body: TerminalBody) => send<TerminalRecord>("POST", of(id), { body }),
    /** Hangs the shell up. */
    close: (id: string, session: string) => send<void>("DELETE", `${of(id)}/${segment(session)}`),
    /** Output comes as binary frames, the screen as it is first; the session gets this size. */
    attach: (id: string, session: string, size: TerminalSize) =>
      socket(`${of(id)}/stream`, { session, cols: size.cols, rows: size.rows }),
  };
}
