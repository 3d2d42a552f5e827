// Offers a preview of what begins to listen in a sandbox, wherever in the window one is. Each port is offered once: a server
// that is restarted again and again is not to nag.
import type { App } from "../state/app.svelte";
import { isGap } from "../state/events.svelte";
import { hrefOfSandbox } from "../lib/router.svelte";
import { programOf } from "./preview-view";

const SHOWN_MS = 15_000;

type Needs = Pick<App, "api" | "events" | "sandboxes" | "router" | "toasts">;

/** Listens until the function that it gives is called. */
export function offerPorts(app: Needs): () => void {
  const offered = new Set<string>();
  const idOf = (sandbox: string, port: unknown) => `port:${sandbox}:${String(port)}`;
  return app.events.subscribe((happening) => {
    if (isGap(happening) || typeof happening.port !== "number") return;
    const { type, sandbox_id: sandbox, port } = happening;
    const id = idOf(sandbox, port);
    if (type === "sandbox.port.closed") {
      app.toasts.dismiss(id);
    } else if (type === "sandbox.port.opened" && !offered.has(id)) {
      offered.add(id);
      void offer(app, id, sandbox, port, happening.command);
    }
  });
}

async function offer(app: Needs, id: string, sandbox: string, port: number, command: unknown): Promise<void> {
  const { route } = app.router;
  // That tab offers it itself.
  if (route.name === "sandbox" && route.id === sandbox && route.tab === "preview") return;
  const previews = await app.api.previews.list(sandbox).catch(() => null);
  if (previews === null || previews.some((preview) => preview.port === port)) return;
  const program = typeof command === "string" ? programOf(command) : null;
  const where = app.sandboxes.byId.get(sandbox)?.name ?? sandbox;
  app.toasts.info(
    `Something listens on ${port}`,
    { label: "Preview", run: () => void accept(app, sandbox, port) },
    { id, duration: SHOWN_MS, description: program === null ? `In ${where}` : `${program}, in ${where}` },
  );
}

async function accept(app: Needs, sandbox: string, port: number): Promise<void> {
  try {
    await app.api.previews.put(sandbox, { port });
    app.router.go(hrefOfSandbox(sandbox, "preview", String(port)));
  } catch (error) {
    app.toasts.failure(`Cannot open port ${port}`, error);
  }
}
