// One sandbox in the making: from the call to running, failed, or cancelled. What the server says about it comes through the
// list's store, so that this needs no connection of its own.
import { asApiError, type ApiError, type CreateBody, type Sandbox } from "../api/client";
import type { App } from "../state/app.svelte";
import { milliseconds } from "../lib/format";
import { lastError, titleOf } from "./sandbox-view";
import type { FieldErrors } from "./create-form";

type Needs = Pick<App, "api" | "sandboxes" | "events" | "toasts">;

export type Phase = "form" | "creating" | "failed";

/** The end of a making. */
type End = "running" | "failed" | "gone";

export class Creation {
  phase = $state<Phase>("form");
  id = $state<string | null>(null);
  since = $state<Date>(new Date());
  cancelling = $state(false);
  /** What the API refused and no field is to blame for. */
  error = $state.raw<ApiError | null>(null);
  fieldErrors = $state.raw<FieldErrors>({});
  /** Nobody waits for it in the dialog any more. */
  private left = false;
  private cancelled = false;

  constructor(private readonly app: Needs) {}

  get sandbox(): Sandbox | undefined {
    return this.id === null ? undefined : this.app.sandboxes.byId.get(this.id);
  }

  get reason(): string | null {
    return this.sandbox === undefined ? null : lastError(this.sandbox);
  }

  /** Makes it; gives it once it runs, or `null` when it does not, or when nobody waits any more. */
  async start(body: CreateBody): Promise<Sandbox | null> {
    Object.assign(this, { phase: "creating", since: new Date(), error: null, fieldErrors: {}, id: null });
    Object.assign(this, { left: false, cancelled: false });
    let made: Sandbox;
    try {
      made = await this.app.api.sandboxes.create(body, { key: crypto.randomUUID() });
    } catch (thrown) {
      this.refused(asApiError(thrown));
      return null;
    }
    this.id = made.id;
    this.app.sandboxes.put(made);
    if (this.cancelled) {
      await this.cancel();
      return null;
    }
    const end = await this.end(made);
    return this.finish(made.id, end);
  }

  /** Destroys what was begun, and goes back to the form. */
  async cancel(): Promise<void> {
    this.cancelled = true;
    if (this.id === null) return;
    this.cancelling = true;
    try {
      await this.app.api.sandboxes.destroy(this.id);
      this.app.sandboxes.remove(this.id);
      this.again();
    } catch (error) {
      this.app.toasts.failure("Cannot destroy the sandbox that was begun", error);
    }
    this.cancelling = false;
  }

  /** The dialog goes; the making goes on. */
  leave(): void {
    this.left = true;
    this.again();
  }

  again(): void {
    Object.assign(this, { phase: "form", id: null, error: null, fieldErrors: {} });
  }

  /** What the API said about a field is no longer about what stands there. */
  edited(field: string): void {
    this.error = null;
    this.fieldErrors = Object.fromEntries(Object.entries(this.fieldErrors).filter(([name]) => name !== field));
  }

  private refused(error: ApiError): void {
    this.phase = "form";
    const field = error.code === "NAME_TAKEN" ? "name" : error.field;
    if (field === undefined) this.error = error;
    else this.fieldErrors = { [field]: error.message };
  }

  /** Waits until it is no longer being made. */
  private end(made: Sandbox): Promise<End> {
    return new Promise((resolve) => {
      const stop = $effect.root(() => {
        $effect(() => {
          const sandbox = this.app.sandboxes.byId.get(made.id);
          const end: End | null =
            sandbox === undefined
              ? "gone"
              : sandbox.state === "running"
                ? "running"
                : sandbox.state === "error"
                  ? "failed"
                  : null;
          if (end === null) return;
          resolve(end);
          queueMicrotask(() => stop());
        });
      });
    });
  }

  private finish(id: string, end: End): Sandbox | null {
    const sandbox = this.app.sandboxes.byId.get(id);
    if (end === "gone" || sandbox === undefined || this.cancelled) return null;
    if (end === "failed") {
      if (this.left)
        this.app.toasts.failure(`${titleOf(sandbox)} could not be made`, new Error(lastError(sandbox) ?? ""));
      else this.phase = "failed";
      return null;
    }
    const took =
      sandbox.boot_ms === null || sandbox.boot_ms === undefined ? "" : ` after ${milliseconds(sandbox.boot_ms)}`;
    const path = sandbox.boot_path ? ` (${sandbox.boot_path} start)` : "";
    this.app.toasts.success(`${titleOf(sandbox)} runs${took}${path}`);
    if (this.left) return null;
    return sandbox;
  }
}
