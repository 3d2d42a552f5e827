// Many sandboxes at once: one call, and each that did not work is named.
import type { BulkOutcome, Sandbox } from "../api/client";
import { count } from "../lib/format";
import type { App } from "../state/app.svelte";
import { LOST } from "./sandbox-actions";
import { titleOf } from "./sandbox-view";

const NAMED_MAX = 3;

export async function pauseMany(sandboxes: Sandbox[], app: App): Promise<void> {
  await many(sandboxes, app, "pausing", "pause", "paused", (ids) => app.api.sandboxes.pauseMany(ids));
}

export async function resumeMany(sandboxes: Sandbox[], app: App): Promise<void> {
  await many(sandboxes, app, "resuming", "resume", "resumed", (ids) => app.api.sandboxes.resumeMany(ids));
}

export async function destroyMany(sandboxes: Sandbox[], app: App): Promise<void> {
  const yes = await app.dialogs.confirm({
    title: `Destroy ${count(sandboxes.length, "sandbox", "sandboxes")}?`,
    text: LOST,
    items: sandboxes.map(titleOf),
    yes: `Destroy ${sandboxes.length}`,
    destructive: true,
  });
  if (!yes) return;
  await many(sandboxes, app, "destroying", "destroy", "destroyed", async (ids) => {
    const outcome = await app.api.sandboxes.destroyMany(ids);
    for (const id of outcome.succeeded) app.sandboxes.remove(id);
    return outcome;
  });
}

async function many(
  sandboxes: Sandbox[],
  app: App,
  word: string,
  verb: string,
  done: string,
  call: (ids: string[]) => Promise<BulkOutcome>,
): Promise<void> {
  const ids = sandboxes.map((sandbox) => sandbox.id);
  for (const id of ids) app.sandboxes.busy.set(id, word);
  try {
    const { succeeded, failed } = await call(ids);
    if (succeeded.length > 0) app.toasts.success(`${count(succeeded.length, "sandbox", "sandboxes")} ${done}`);
    if (failed.length > 0) {
      app.toasts.failure(
        `Cannot ${verb} ${count(failed.length, "sandbox", "sandboxes")}`,
        failureText(failed, sandboxes),
      );
    }
  } catch (error) {
    app.toasts.failure(`Cannot ${verb} ${count(ids.length, "sandbox", "sandboxes")}`, error);
  } finally {
    for (const id of ids) app.sandboxes.busy.delete(id);
    await app.sandboxes.refresh();
  }
}

/** `demo: The disk is full. web: … and 4 more.` */
export function failureText(failed: BulkOutcome["failed"], sandboxes: Sandbox[]): string {
  const titles = new Map(sandboxes.map((sandbox) => [sandbox.id, titleOf(sandbox)]));
  const named = failed.slice(0, NAMED_MAX).map(({ id, error }) => `${titles.get(id) ?? id}: ${error}`);
  const more = failed.length - named.length;
  return named.join(" ") + (more > 0 ? ` And ${more} more.` : "");
}
