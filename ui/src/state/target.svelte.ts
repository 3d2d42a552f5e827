// Which sandbox the keyboard and the palette mean: the open one, or the one that is current in the list.
import type { Sandbox } from "../api/client";
import type { Router } from "../lib/router.svelte";
import type { Sandboxes } from "./sandboxes.svelte";

export class Target {
  /** The current row of the list. */
  row = $state<string | null>(null);

  constructor(
    private readonly router: Router,
    private readonly sandboxes: Sandboxes,
  ) {}

  get sandbox(): Sandbox | undefined {
    const id = this.router.route.name === "sandboxes" ? this.row : this.router.sandboxId;
    return id === null ? undefined : this.sandboxes.byId.get(id);
  }
}
