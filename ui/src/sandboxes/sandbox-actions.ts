// Everything that can be done to a sandbox as a whole, once: the row's menu, the details' header, the keyboard and the
// palette all draw and run these.
import {
  AlarmClockPlus,
  Camera,
  Copy,
  GitFork,
  MonitorPlay,
  PanelTopOpen,
  Pause,
  Pencil,
  Play,
  SquareTerminal,
  Trash2,
} from "@lucide/svelte";
import type { Sandbox } from "../api/client";
import { duration } from "../lib/format";
import type { Action } from "../lib/action";
import type { App } from "../state/app.svelte";
import { titleOf } from "./sandbox-view";

export type SandboxAction = Action<Sandbox, App>;

const is = (...states: string[]) => {
  return (sandbox: Sandbox) => states.includes(sandbox.state);
};
/** Work in it is possible: it runs, or wakes by itself. */
const works = (sandbox: Sandbox) =>
  ["running", "snapshotting"].includes(sandbox.state) || (sandbox.state === "paused" && sandbox.persistent);
const exists = (sandbox: Sandbox) => !["destroying", "destroyed"].includes(sandbox.state);

export const openSandbox: SandboxAction = {
  id: "sandbox.open",
  label: "Open",
  icon: PanelTopOpen,
  shortcut: "enter",
  enabled: exists,
  run: (sandbox, app) => app.router.toSandbox(sandbox.id),
};

export const openTerminal: SandboxAction = {
  id: "sandbox.terminal",
  label: "Terminal",
  icon: SquareTerminal,
  shortcut: "t",
  enabled: works,
  run: (sandbox, app) => app.router.toSandbox(sandbox.id, "terminal"),
};

export const openPreview: SandboxAction = {
  id: "sandbox.preview",
  label: "Preview",
  icon: MonitorPlay,
  shortcut: "v",
  enabled: works,
  run: (sandbox, app) => app.router.toSandbox(sandbox.id, "preview"),
};

export const pauseSandbox: SandboxAction = {
  id: "sandbox.pause",
  label: "Pause",
  icon: Pause,
  shortcut: "p",
  enabled: is("running"),
  separate: true,
  run: async (sandbox, app) => {
    const call = () => app.api.sandboxes.pause(sandbox.id);
    await app.sandboxes
      .during(sandbox.id, "pausing", call)
      .catch((error: unknown) => app.toasts.failure(`Cannot pause ${titleOf(sandbox)}`, error));
  },
};

export const resumeSandbox: SandboxAction = {
  id: "sandbox.resume",
  label: "Resume",
  icon: Play,
  shortcut: "p",
  enabled: is("paused", "error"),
  separate: true,
  run: async (sandbox, app) => {
    const call = () => app.api.sandboxes.resume(sandbox.id);
    await app.sandboxes
      .during(sandbox.id, "resuming", call)
      .catch((error: unknown) => app.toasts.failure(`Cannot resume ${titleOf(sandbox)}`, error));
  },
};

export const forkSandbox: SandboxAction = {
  id: "sandbox.fork",
  label: "Fork…",
  icon: GitFork,
  shortcut: "f",
  enabled: is("running", "paused"),
  run: (sandbox, app) =>
    app.dialogs.ask({
      title: `Fork ${titleOf(sandbox)}`,
      label: "Name of the fork",
      hint: "A copy of disk and memory as they are now. The source keeps running.",
      placeholder: "Without a name, its id is used",
      yes: "Fork",
      submit: async (name) => {
        const fork = await app.api.sandboxes.fork(sandbox.id, name === "" ? {} : { name });
        app.sandboxes.put(fork);
        app.toasts.success(`${titleOf(sandbox)} was forked as ${titleOf(fork)}`, {
          label: "Open",
          run: () => app.router.toSandbox(fork.id),
        });
      },
    }),
};

export const snapshotSandbox: SandboxAction = {
  id: "sandbox.snapshot",
  label: "Snapshot…",
  icon: Camera,
  shortcut: "s",
  enabled: is("running", "paused"),
  run: (sandbox, app) =>
    app.dialogs.ask({
      title: `Snapshot of ${titleOf(sandbox)}`,
      label: "Comment",
      hint: "Disk and memory as they are now. It stands still for a moment and goes on.",
      placeholder: "What is worth coming back to?",
      yes: "Take snapshot",
      submit: async (comment) => {
        await app.api.sandboxes.snapshot(sandbox.id, comment === "" ? {} : { comment });
        app.toasts.success(`Snapshot of ${titleOf(sandbox)} taken`, {
          label: "Show",
          run: () => app.router.toSandbox(sandbox.id, "snapshots"),
        });
      },
    }),
};

export const extendSandbox: SandboxAction = {
  id: "sandbox.extend",
  label: "Extend session",
  icon: AlarmClockPlus,
  shortcut: "e",
  enabled: (sandbox) => sandbox.state === "running" && !sandbox.always_on,
  run: async (sandbox, app) => {
    try {
      const extended = await app.api.sandboxes.extend(sandbox.id);
      app.sandboxes.put(extended);
      app.toasts.success(`${titleOf(sandbox)} has ${duration(extended.timeout_sec)} from now`);
    } catch (error) {
      app.toasts.failure(`Cannot extend the session of ${titleOf(sandbox)}`, error);
    }
  },
};

export const renameSandbox: SandboxAction = {
  id: "sandbox.rename",
  label: "Rename…",
  icon: Pencil,
  shortcut: "r",
  enabled: exists,
  separate: true,
  run: (sandbox, app) =>
    app.dialogs.ask({
      title: `Rename ${titleOf(sandbox)}`,
      label: "Name",
      hint: "Unique among live sandboxes; empty takes the name away.",
      value: sandbox.name ?? "",
      yes: "Rename",
      submit: async (name) => {
        app.sandboxes.put(await app.api.sandboxes.update(sandbox.id, { name: name === "" ? null : name }));
      },
    }),
};

export const copySandboxId: SandboxAction = {
  id: "sandbox.copy-id",
  label: "Copy id",
  icon: Copy,
  shortcut: "c",
  enabled: () => true,
  run: async (sandbox, app) => {
    await navigator.clipboard.writeText(sandbox.id);
    app.toasts.info(`${sandbox.id} copied`);
  },
};

export const destroySandbox: SandboxAction = {
  id: "sandbox.destroy",
  label: "Destroy…",
  icon: Trash2,
  shortcut: "delete",
  enabled: exists,
  destructive: true,
  separate: true,
  run: async (sandbox, app) => {
    const title = titleOf(sandbox);
    const yes = await app.dialogs.confirm({
      title: `Destroy ${title}?`,
      text: LOST,
      yes: "Destroy",
      destructive: true,
    });
    if (!yes) return;
    app.sandboxes.busy.set(sandbox.id, "destroying");
    try {
      await app.api.sandboxes.destroy(sandbox.id);
      app.sandboxes.remove(sandbox.id);
      if (app.router.sandboxId === sandbox.id) app.router.toSandboxes();
      app.toasts.success(`${title} was destroyed`);
    } catch (error) {
      app.toasts.failure(`Cannot destroy ${title}`, error);
    } finally {
      app.sandboxes.busy.delete(sandbox.id);
    }
  },
};

/** What destroying takes away; said wherever it is offered. */
export const LOST =
  "Its files and what runs in it are removed and cannot be brought back. Snapshots that were taken of it stay.";

export const sandboxActions: SandboxAction[] = [
  openSandbox,
  openTerminal,
  openPreview,
  pauseSandbox,
  resumeSandbox,
  forkSandbox,
  snapshotSandbox,
  extendSandbox,
  renameSandbox,
  copySandboxId,
  destroySandbox,
];

/** Those that make sense now. While something is being done to it, only looking is. */
export function actionsFor(sandbox: Sandbox, busy: boolean, among: SandboxAction[] = sandboxActions): SandboxAction[] {
  const calm = new Set(["sandbox.open", "sandbox.copy-id"]);
  return among.filter((action) => action.enabled(sandbox) && (!busy || calm.has(action.id)));
}
