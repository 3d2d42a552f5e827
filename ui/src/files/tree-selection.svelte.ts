// Which rows of the tree are chosen, and on which one the keyboard stands. Rows are named by their path, so that they stay
// chosen while others come and go.
import { SvelteSet } from "svelte/reactivity";

export class TreeSelection {
  cursor = $state<string | null>(null);
  readonly chosen = new SvelteSet<string>();
  /** Where a range begins. */
  private anchor: string | null = null;

  /** This one alone. */
  only(path: string): void {
    this.cursor = path;
    this.anchor = path;
    this.chosen.clear();
    this.chosen.add(path);
  }

  /** This one too, or no longer. */
  toggle(path: string): void {
    this.cursor = path;
    this.anchor = path;
    if (!this.chosen.delete(path)) this.chosen.add(path);
  }

  /** All from where the choice began to this one. */
  through(path: string, order: readonly string[]): void {
    const [from, to] = [order.indexOf(this.anchor ?? path), order.indexOf(path)];
    this.cursor = path;
    this.chosen.clear();
    if (from < 0 || to < 0) this.chosen.add(path);
    else for (const one of order.slice(Math.min(from, to), Math.max(from, to) + 1)) this.chosen.add(one);
  }

  /** What an action on `path` is about: all that is chosen when it is among it, else it alone. */
  about(path: string): string[] {
    return this.chosen.has(path) ? [...this.chosen] : [path];
  }

  /** Rows that are gone are not chosen. */
  keepOnly(paths: ReadonlySet<string>): void {
    for (const path of [...this.chosen]) if (!paths.has(path)) this.chosen.delete(path);
    if (this.cursor !== null && !paths.has(this.cursor)) this.cursor = null;
  }
}
