// The terminals of one sandbox: tabs, panes and their sessions. Keeps what the browser remembers and what the server has
// in agreement; the sessions themselves live on the server.
import { asApiError, type Api, type ApiError } from "../api/client";
import type { TerminalSize } from "../api/terminal";
import { isAwake } from "./link-state";
import { Pane } from "./pane.svelte";
import * as splitTree from "./split-tree";
import type { Direction, Side } from "./split-tree";
import { load, reconcile, save, tabWith, type TerminalLayout, type TerminalTab } from "./terminal-layout";
import type { LinkHost } from "./terminal-link.svelte";

const newId = () => crypto.randomUUID().slice(0, 8);

export class TerminalWorkspace {
  tabs = $state.raw<TerminalTab[]>([]);
  active = $state<string | null>(null);
  panes = $state.raw<ReadonlyMap<string, Pane>>(new Map());
  /** The server's sessions are known. */
  ready = $state(false);
  error = $state.raw<ApiError | null>(null);
  readonly tab = $derived(this.tabs.find((tab) => tab.id === this.active) ?? null);
  readonly pane = $derived(this.tab === null ? null : (this.panes.get(this.tab.focus) ?? null));
  /** Tabs that were shown: only these are drawn, so that only they attach. */
  shown = $state.raw<ReadonlySet<string>>(new Set());
  private sandboxState = "";
  private loading = false;
  private disposed = false;
  private readonly host: LinkHost;

  constructor(
    private readonly api: Pick<Api, "terminal" | "sandboxes">,
    private readonly sandboxId: string,
  ) {
    const { terminal, sandboxes } = api;
    this.host = {
      open: async (size: TerminalSize) => (await terminal.open(sandboxId, size)).session_id,
      attach: (session, size) => terminal.attach(sandboxId, session, size),
      sessions: async () => (await terminal.list(sandboxId)).map((each) => each.session_id),
      sandboxState: async () => (await sandboxes.get(sandboxId)).state,
    };
  }

  /** The sandbox's state as the page shows it. The first time that it runs, its sessions are fetched. */
  sandboxIs(state: string): void {
    this.sandboxState = state;
    for (const pane of this.panes.values()) pane.link.sandboxIs(state);
    if (isAwake(state) && !this.ready) void this.refresh();
  }

  /** Takes in the server's sessions; opens one when there is none and nobody closed the last. */
  async refresh(): Promise<void> {
    if (this.loading || !isAwake(this.sandboxState)) return;
    const first = !this.ready;
    // What is being opened is not on the server's list yet.
    if ([...this.panes.values()].some((pane) => pane.link.session === null)) return;
    this.loading = true;
    try {
      const sessions = (await this.api.terminal.list(this.sandboxId)).map((each) => each.session_id);
      if (this.disposed) return;
      this.error = null;
      // The end of a shell stays on the screen until somebody closes it.
      const over = [...this.panes.values()].filter((pane) => pane.over).map((pane) => pane.link.session ?? "");
      const known = first ? load(this.sandboxId) : this.layout();
      this.take(reconcile(known, [...new Set([...sessions, ...over])], newId));
      this.ready = true;
      if (first && this.tabs.length === 0) this.add();
    } catch (error) {
      this.error = asApiError(error);
    } finally {
      this.loading = false;
    }
  }

  /** A new tab with a new shell. */
  add(): void {
    const pane = this.newPane(null);
    const tab = tabWith(newId(), pane.id);
    this.tabs = [...this.tabs, tab];
    this.show(tab.id);
  }

  /** Halves the pane that has the focus and opens a shell in the new half. */
  split(direction: Direction): void {
    const { tab } = this;
    if (tab === null) return this.add();
    const pane = this.newPane(null);
    this.change(tab.id, { tree: splitTree.split(tab.tree, tab.focus, direction, pane.id, newId()), focus: pane.id });
  }

  show(id: string): void {
    this.active = id;
    this.shown = new Set([...this.shown, id]);
    const { tab } = this;
    if (tab === null) return;
    for (const pane of splitTree.panesOf(tab.tree)) this.see(pane);
    this.keep();
  }

  /** The tab `step` places further, around the end. */
  showNext(step: number): void {
    const at = this.tabs.findIndex((tab) => tab.id === this.active);
    const next = this.tabs[(at + step + this.tabs.length) % this.tabs.length];
    if (next === undefined) return;
    this.show(next.id);
    this.pane?.screen?.focus();
  }

  focus(pane: string): void {
    const { tab } = this;
    this.see(pane);
    if (tab !== null && tab.focus !== pane) this.change(tab.id, { focus: pane });
  }

  focusBeside(side: Side): void {
    const { tab } = this;
    const next = tab === null ? null : splitTree.neighbour(tab.tree, tab.focus, side);
    if (next === null) return;
    this.focus(next);
    this.pane?.screen?.focus();
  }

  resize(tab: TerminalTab, bar: string, share: number): void {
    this.change(tab.id, { tree: splitTree.resize(tab.tree, bar, share) });
  }

  rename(tab: string, name: string): void {
    this.change(tab, { name: name.trim() === "" ? null : name.trim() });
  }

  /** Takes a pane away and ends its shell. */
  async close(id: string): Promise<void> {
    const pane = this.panes.get(id);
    const tab = this.tabs.find((each) => splitTree.panesOf(each.tree).includes(id));
    if (pane === undefined || tab === undefined) return;
    const session = pane.over ? null : pane.link.session;
    const tree = splitTree.remove(tab.tree, id);
    if (tree === null) this.removeTab(tab.id);
    else if (tab.focus !== id) this.change(tab.id, { tree });
    else this.change(tab.id, { tree, focus: splitTree.panesOf(tree)[0] ?? "" });
    pane.link.dispose();
    this.panes = new Map([...this.panes].filter(([key]) => key !== id));
    this.keep();
    this.pane?.screen?.focus();
    if (session !== null) await this.api.terminal.close(this.sandboxId, session);
  }

  async closeTab(id: string): Promise<void> {
    const tab = this.tabs.find((each) => each.id === id);
    if (tab === undefined) return;
    await Promise.all(splitTree.panesOf(tab.tree).map((pane) => this.close(pane)));
  }

  panesOf(tab: TerminalTab): Pane[] {
    return splitTree.panesOf(tab.tree).flatMap((id) => this.panes.get(id) ?? []);
  }

  dispose(): void {
    this.disposed = true;
    for (const pane of this.panes.values()) pane.link.dispose();
  }

  /** Writes down what lies where. */
  keep(): void {
    if (this.ready) save(this.sandboxId, this.layout());
  }

  private layout(): TerminalLayout {
    const panes = [...this.panes].map(([id, pane]) => [id, { session: pane.link.session }] as const);
    return { tabs: this.tabs, panes: Object.fromEntries(panes), active: this.active };
  }

  private take(layout: TerminalLayout): void {
    const panes = new Map<string, Pane>();
    for (const [id, { session }] of Object.entries(layout.panes)) {
      const pane = this.panes.get(id) ?? this.makePane(id, session);
      panes.set(id, pane);
    }
    for (const [id, pane] of this.panes) if (!panes.has(id)) pane.link.dispose();
    this.panes = panes;
    this.tabs = layout.tabs;
    this.active = layout.active;
    if (layout.active !== null) this.show(layout.active);
  }

  private newPane(session: string | null): Pane {
    const pane = this.makePane(newId(), session);
    this.panes = new Map([...this.panes, [pane.id, pane]]);
    return pane;
  }

  private makePane(id: string, session: string | null): Pane {
    const pane = new Pane(id, session, this.host);
    pane.link.sandboxIs(this.sandboxState);
    return pane;
  }

  private removeTab(id: string): void {
    const at = this.tabs.findIndex((tab) => tab.id === id);
    this.tabs = this.tabs.filter((tab) => tab.id !== id);
    if (this.active !== id) return;
    const next = this.tabs[Math.min(at, this.tabs.length - 1)];
    if (next === undefined) this.active = null;
    else this.show(next.id);
  }

  private change(id: string, changes: Partial<TerminalTab>): void {
    this.tabs = this.tabs.map((tab) => (tab.id === id ? { ...tab, ...changes } : tab));
    this.keep();
  }

  private see(pane: string): void {
    const seen = this.panes.get(pane);
    if (seen !== undefined) seen.unseen = false;
  }
}
