// Typed calls, by area; with the wire types, the only thing that pages import.
import { eventsApi } from "./events";
import { filesApi } from "./files";
import { previewsApi } from "./previews";
import { logsApi } from "./logs";
import { metricsApi } from "./metrics";
import { processesApi } from "./processes";
import { sandboxesApi } from "./sandboxes";
import { snapshotsApi } from "./snapshots";
import { systemApi } from "./system";
import { templatesApi } from "./templates";
import { terminalApi } from "./terminal";
import type { Transport } from "./transport";

export { ApiError, asApiError, isAbort } from "./errors";
export type { components, paths } from "./types.gen";
export type * from "./events";
export type * from "./files";
export type * from "./previews";
export type * from "./logs";
export type * from "./metrics";
export type * from "./processes";
export type * from "./sandboxes";
export type * from "./snapshots";
export type * from "./system";
export type * from "./templates";
export type * from "./terminal";

/** The API as the page uses it: `api.sandboxes.pause(id)`. */
export function client(transport: Transport) {
  return {
    sandboxes: sandboxesApi(transport),
    templates: templatesApi(transport),
    files: filesApi(transport),
    previews: previewsApi(transport),
    terminal: terminalApi(transport),
    processes: processesApi(transport),
    logs: logsApi(transport),
    metrics: metricsApi(transport),
    snapshots: snapshotsApi(transport),
    events: eventsApi(transport),
    system: systemApi(transport),
  };
}

export type Api = ReturnType<typeof client>;
