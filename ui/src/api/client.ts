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
      create: async (): Promise<Sandbox> => (await send("POST", "/sandboxes?wait=false", {})) as Sandbox,
      /** Resolves once the sandbox is no longer being made, or after the server's longest wait. */
      destroy: async (id: string): Promise<void> => {
        await send("DELETE", `/sandboxes/${id}`);
      },
    },
  };
}

export type Api = ReturnType<typeof client>;
