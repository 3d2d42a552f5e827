// Background processes of a sandbox, their output, and who listens in it. All but `listeners` wake a paused sandbox.
import { segment, type Stream, type StreamOptions, type Transport } from "./transport";
import type { components } from "./types.gen";

type Schemas = components["schemas"];
export type ProcessRecord = Schemas["ProcessRecord"];
export type ProcessBody = Schemas["ProcessBody"];
export type Listener = Schemas["ListenerRecord"];

/** One frame of a process's output. */
export interface OutputLine {
  stream: "stdout" | "stderr";
  line: string;
  /** More of this line follows. */
  partial?: boolean;
}

/** Output between two cursors that nobody has any more. */
export interface OutputGap {
  event: "gap";
  from: number;
  to: number;
}

export interface OutputExit {
  event: "exit";
  exit_code: number;
  duration_ms: number;
}

export function processesApi({ send, stream }: Transport) {
  const all = (id: string) => `/sandboxes/${segment(id)}/processes`;
  const of = (id: string, pid: number) => `${all(id)}/${pid}`;
  return {
    /** Those that run, and the last ones that ended; oldest first. */
    list: (id: string) => send<ProcessRecord[]>("GET", all(id)),
    start: (id: string, body: ProcessBody) => send<ProcessRecord>("POST", all(id), { body }),
    get: (id: string, pid: number) => send<ProcessRecord>("GET", of(id, pid)),
    /** SIGTERM, and SIGKILL after five seconds. */
    stop: (id: string, pid: number) => send<void>("DELETE", of(id, pid)),
    signal: (id: string, pid: number, signal: string) =>
      send<ProcessRecord>("POST", `${of(id, pid)}/signal`, { body: { signal } }),
    /** `end` closes standard input afterwards. */
    write: (id: string, pid: number, data: string, end = false) =>
      send<Schemas["StdinWritten"]>("POST", `${of(id, pid)}/stdin`, { body: { data, end } }),
    /** Frames `stdout`, `stderr`, `gap` and, last, `exit`; each id is a cursor to go on from. */
    output: (id: string, pid: number, options: StreamOptions): Stream => stream(`${of(id, pid)}/stream`, options),
    /** Who listens on TCP ports; nobody while the sandbox does not run. */
    listeners: (id: string) => send<Listener[]>("GET", `/sandboxes/${segment(id)}/ports`),
  };
}
