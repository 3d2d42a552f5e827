// Events of a sandbox as lines of a timeline: a start and its end are one line, and each says what happened in words.
// Pure.
import type { CoveEvent, Sandbox } from "../api/client";
import { milliseconds } from "../lib/format";

export type EventGroup = "life" | "commands" | "snapshots" | "ports" | "errors";
export type EventTone = "neutral" | "ok" | "accent" | "warn" | "danger";
export type EventIcon =
  | "created"
  | "running"
  | "paused"
  | "idle"
  | "destroyed"
  | "command"
  | "snapshot"
  | "port"
  | "preview"
  | "share"
  | "error"
  | "gap"
  | "other";

export interface TimelineItem {
  id: string;
  at: Date;
  group: EventGroup | "gap";
  icon: EventIcon;
  tone: EventTone;
  title: string;
  /** Beside the title: a command, an address, a reason. */
  detail: string;
  /** The detail is code. */
  mono: boolean;
  /** It began and has not ended. */
  running: boolean;
  /** Everything that the events say, for those who look closer. */
  facts: [name: string, value: string][];
}

export const GROUPS: { value: EventGroup; label: string }[] = [
  { value: "life", label: "Life" },
  { value: "commands", label: "Commands" },
  { value: "snapshots", label: "Snapshots" },
  { value: "ports", label: "Ports and previews" },
  { value: "errors", label: "Errors" },
];

type Look = Pick<TimelineItem, "group" | "icon" | "tone" | "title">;

const LOOKS: Record<string, Look> = {
  "sandbox.created": { group: "life", icon: "created", tone: "accent", title: "Created" },
  "sandbox.started": { group: "life", icon: "running", tone: "ok", title: "Machine started" },
  "sandbox.ready": { group: "life", icon: "running", tone: "ok", title: "Ready for commands" },
  "sandbox.idle": { group: "life", icon: "idle", tone: "neutral", title: "Idle for too long" },
  "sandbox.paused": { group: "life", icon: "paused", tone: "neutral", title: "Paused" },
  "sandbox.resumed": { group: "life", icon: "running", tone: "ok", title: "Resumed" },
  "sandbox.destroyed": { group: "life", icon: "destroyed", tone: "danger", title: "Destroyed" },
  "sandbox.cold_boot": {
    group: "errors",
    icon: "error",
    tone: "warn",
    title: "Booted from its disk; what ran is gone",
  },
  "sandbox.error": { group: "errors", icon: "error", tone: "danger", title: "Failed" },
  "sandbox.snapshot.ready": { group: "snapshots", icon: "snapshot", tone: "accent", title: "Snapshot taken" },
  "sandbox.exec.started": { group: "commands", icon: "command", tone: "neutral", title: "Command" },
  "sandbox.exec.completed": { group: "commands", icon: "command", tone: "neutral", title: "Command ended" },
  "sandbox.preview.ready": { group: "ports", icon: "preview", tone: "accent", title: "Preview ready" },
  "sandbox.port.opened": { group: "ports", icon: "port", tone: "ok", title: "Port opened" },
  "sandbox.port.closed": { group: "ports", icon: "port", tone: "neutral", title: "Port closed" },
  "sandbox.share.created": { group: "ports", icon: "share", tone: "neutral", title: "Share made" },
  "sandbox.share.revoked": { group: "ports", icon: "share", tone: "neutral", title: "Share taken back" },
};

/** Facts that every event has, and that the line shows anyway. */
const COMMON = new Set(["type", "id", "ts", "tenant_id", "sandbox_id"]);

const text = (value: unknown): string =>
  value === null || value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value);

/** Events, oldest first, as lines, newest first. A marker `gap` says that events may be missing before the next one. */
export function timelineOf(events: readonly CoveEvent[]): TimelineItem[] {
  const items: TimelineItem[] = [];
  const commands = new Map<string, TimelineItem>();
  for (const event of events) {
    const execId = text(event.exec_id);
    const started = event.type === "sandbox.exec.completed" ? commands.get(execId) : undefined;
    if (started !== undefined) {
      complete(started, event);
      continue;
    }
    const item = itemOf(event);
    items.push(item);
    if (event.type === "sandbox.exec.started") commands.set(execId, item);
  }
  return items.reverse();
}

function itemOf(event: CoveEvent): TimelineItem {
  const look = LOOKS[event.type] ?? unknownLook(event.type);
  const item: TimelineItem = {
    ...look,
    id: event.id,
    at: new Date(event.ts),
    detail: "",
    mono: false,
    running: event.type === "sandbox.exec.started",
    facts: factsOf(event),
  };
  if (event.type === "gap")
    return { ...item, group: "gap", icon: "gap", tone: "warn", title: "Events may be missing here" };
  switch (look.icon) {
    case "command":
      item.detail = text(event.command) || text(event.exec_id);
      item.mono = true;
      if (event.type === "sandbox.exec.completed") complete(item, event);
      break;
    case "port":
      item.detail = `${text(event.port)}${event.command == null ? "" : ` by ${text(event.command)}`}`;
      break;
    case "preview":
      item.detail = text(event.url);
      break;
    case "snapshot":
      item.detail = text(event.snapshot_id);
      item.mono = true;
      break;
    case "share":
      item.detail = text(event.share_id);
      item.mono = true;
      break;
    case "error":
      item.detail = text(event.error ?? event.reason);
      break;
  }
  return item;
}

/** `exit_code` is null when a call was cancelled. */
function complete(item: TimelineItem, event: CoveEvent): void {
  const code = typeof event.exit_code === "number" ? event.exit_code : null;
  const took = typeof event.duration_ms === "number" ? ` after ${milliseconds(event.duration_ms)}` : "";
  item.running = false;
  item.title =
    code === null ? `Command given up${took}` : code === 0 ? `Command done${took}` : `Command exited ${code}${took}`;
  item.tone = code === null ? "warn" : code === 0 ? "neutral" : "danger";
  const known = new Set(item.facts.map(([name]) => name));
  item.facts.push(...factsOf(event).filter(([name]) => !known.has(name)));
}

function unknownLook(type: string): Look {
  const words = type.replace(/^sandbox\./, "").replaceAll(/[._]/g, " ");
  return { group: "life", icon: "other", tone: "neutral", title: words.charAt(0).toUpperCase() + words.slice(1) };
}

function factsOf(event: CoveEvent): [string, string][] {
  const own = Object.entries(event).filter(([name]) => !COMMON.has(name));
  return own.map(([name, value]) => [name.replaceAll("_", " "), text(value)]);
}

/** What a sandbox's record says of its past that the server's memory of events does not. */
export function recordedEvents(sandbox: Sandbox, events: readonly CoveEvent[]): CoveEvent[] {
  if (events.some((event) => event.type === "sandbox.created")) return [];
  return [{ type: "sandbox.created", id: "record-created", ts: sandbox.created_at, sandbox_id: sandbox.id }];
}

export interface Day {
  key: string;
  date: Date;
  items: TimelineItem[];
}

/** By the user's calendar; order is kept. */
export function byDay(items: readonly TimelineItem[]): Day[] {
  const days: Day[] = [];
  for (const item of items) {
    const key = item.at.toDateString();
    const last = days.at(-1);
    if (last?.key === key) last.items.push(item);
    else days.push({ key, date: item.at, items: [item] });
  }
  return days;
}

/** `Today`, `Yesterday`, or the date. */
export function dayWord(date: Date, now: Date): string {
  const yesterday = new Date(now);
  yesterday.setDate(now.getDate() - 1);
  if (date.toDateString() === now.toDateString()) return "Today";
  if (date.toDateString() === yesterday.toDateString()) return "Yesterday";
  return date.toLocaleDateString([], { weekday: "long", year: "numeric", month: "long", day: "numeric" });
}

export function matches(item: TimelineItem, groups: ReadonlySet<EventGroup>, query: string): boolean {
  if (item.group === "gap") return query === "";
  if (groups.size > 0 && !groups.has(item.group)) return false;
  if (query === "") return true;
  const wanted = query.toLowerCase();
  return [item.title, item.detail, ...item.facts.map(([, value]) => value)].some((part) =>
    part.toLowerCase().includes(wanted),
  );
}
