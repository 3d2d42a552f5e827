// Everything that the pages share, made once and given through Svelte's context: `getApp()`.
import { createContext } from "svelte";
import { client, type Api, type SystemInfo, type TemplateList } from "../api/client";
import type { Connection } from "../api/connection";
import { transport, type Transport } from "../api/transport";
import { Router } from "../lib/router.svelte";
import { Shortcuts } from "../lib/shortcuts";
import { ConnectionState } from "./connection.svelte";
import { Events } from "./events.svelte";
import { Resource } from "./resource.svelte";
import { Sandboxes } from "./sandboxes.svelte";
import { Target } from "./target.svelte";
import { toasts, type Toasts } from "./toasts";
import { Dialogs } from "./dialogs.svelte";

export interface App {
  connection: Connection;
  reach: ConnectionState;
  transport: Transport;
  api: Api;
  events: Events;
  sandboxes: Sandboxes;
  templates: Resource<TemplateList>;
  system: Resource<SystemInfo>;
  router: Router;
  shortcuts: Shortcuts;
  dialogs: Dialogs;
  target: Target;
  toasts: Toasts;
}

/** Makes the stores and begins to follow events; `stop` ends that. */
export function makeApp(connection: Connection): App & { stop: () => void } {
  const reach = new ConnectionState();
  const wire = transport(connection, (answered) => reach.heard(answered));
  const api = client(wire);
  const events = new Events(api.events, (state, error) => reach.stream(state, error));
  const sandboxes = new Sandboxes(api.sandboxes, events);
  const templates = new Resource<TemplateList>({ fetch: () => api.templates.list(), events });
  const system = new Resource<SystemInfo>({ fetch: () => api.system.info(), events });
  const router = new Router();
  const shortcuts = new Shortcuts();
  const unlisten = shortcuts.listen();
  events.start();
  void sandboxes.refresh();
  void templates.refresh();
  void system.refresh();
  return {
    ...{ connection, reach, transport: wire, api, events, sandboxes, templates, system },
    ...{ router, shortcuts, dialogs: new Dialogs(), target: new Target(router, sandboxes), toasts },
    stop: () => {
      events.stop();
      unlisten();
      for (const store of [sandboxes, templates, system]) store.dispose();
    },
  };
}

export const [getApp, setApp] = createContext<App>();
