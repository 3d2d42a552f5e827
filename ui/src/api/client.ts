// Typed calls; the only thing pages import.
import type { Connection } from "./connection";
import { transport } from "./transport";
import type { components } from "./types.gen";

export { ApiError } from "./transport";

export type Sandbox = components["schemas"]["SandboxRecord"];

/** The API as the page uses it. */
export function client(connection: Connection) {
  const send = transport(connection);
  return {
    sandboxes: {
      list: async (): Promise<Sandbox[]> => (await send("GET", "/sandboxes")) as Sandbox[],
      /** Resolves as soon as the sandbox is recorded: it is still being made then. */
      create: async (): Promise<Sandbox> => (await send("POST", "/sandboxes?wait=false", {})) as Sandbox,
      destroy: async (id: string): Promise<void> => {
        await send("DELETE", `/sandboxes/${id}`);
      },
    },
  };
}

export type Api = ReturnType<typeof client>;
