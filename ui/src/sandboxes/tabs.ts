// The tabs of a sandbox. Each is one component with the props `{ sandbox, active }`, loaded when it is first shown, so that
// terminals, editors and charts stay out of the first paint. A tab whose component is not there is not in the list.
import {
  Activity,
  Camera,
  ChartLine,
  Cpu,
  Files,
  LayoutDashboard,
  MonitorPlay,
  SlidersHorizontal,
  SquareTerminal,
} from "@lucide/svelte";
import type { Component } from "svelte";
import type { Sandbox } from "../api/client";

export interface TabProps {
  sandbox: Sandbox;
  /** It is what the user sees; a tab that is not should let its streams and timers rest. */
  active?: boolean;
}

type TabComponent = Component<TabProps>;

export interface SandboxTab {
  id: string;
  label: string;
  icon: Component<{ size?: number | string }>;
  load: () => Promise<{ default: TabComponent }>;
}

const found = import.meta.glob<{ default: TabComponent }>([
  "./SandboxOverview.svelte",
  "./SandboxSettings.svelte",
  "../terminal/SandboxTerminal.svelte",
  "../files/SandboxFiles.svelte",
  "../previews/SandboxPreview.svelte",
  "../snapshots/SandboxSnapshots.svelte",
  "../processes/SandboxProcesses.svelte",
  "../activity/SandboxActivity.svelte",
  "../metrics/SandboxMetrics.svelte",
]);

const ALL: (Omit<SandboxTab, "load"> & { path: string })[] = [
  { id: "overview", label: "Overview", icon: LayoutDashboard, path: "./SandboxOverview.svelte" },
  { id: "terminal", label: "Terminal", icon: SquareTerminal, path: "../terminal/SandboxTerminal.svelte" },
  { id: "files", label: "Files", icon: Files, path: "../files/SandboxFiles.svelte" },
  { id: "preview", label: "Preview", icon: MonitorPlay, path: "../previews/SandboxPreview.svelte" },
  { id: "snapshots", label: "Snapshots", icon: Camera, path: "../snapshots/SandboxSnapshots.svelte" },
  { id: "processes", label: "Processes", icon: Cpu, path: "../processes/SandboxProcesses.svelte" },
  { id: "activity", label: "Activity", icon: Activity, path: "../activity/SandboxActivity.svelte" },
  { id: "metrics", label: "Metrics", icon: ChartLine, path: "../metrics/SandboxMetrics.svelte" },
  { id: "settings", label: "Settings", icon: SlidersHorizontal, path: "./SandboxSettings.svelte" },
];

export const sandboxTabs: SandboxTab[] = ALL.flatMap(({ path, ...tab }) => {
  const load = found[path];
  return load === undefined ? [] : [{ ...tab, load }];
});
