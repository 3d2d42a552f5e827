// Previews and listeners as the page shows them. Pure.
import type { PortListener, Preview } from "../api/client";

export interface Port {
  port: number;
  preview: Preview | null;
  /** Null: nothing listens there, as far as is known. */
  listener: PortListener | null;
}

/** What is exposed and what could be, each port once: exposed ones first, in the order of their number. */
export function portsOf(previews: readonly Preview[], listeners: readonly PortListener[]): Port[] {
  const numbers = [...new Set([...previews.map(({ port }) => port), ...listeners.map(({ port }) => port)])];
  return numbers
    .map((port) => ({
      port,
      preview: previews.find((preview) => preview.port === port) ?? null,
      listener: best(listeners.filter((listener) => listener.port === port)),
    }))
    .sort((a, b) => Number(b.preview !== null) - Number(a.preview !== null) || a.port - b.port);
}

/** Of several listeners on one port (IPv4 and IPv6) the one of which more is known. */
function best(listeners: readonly PortListener[]): PortListener | null {
  return listeners.find((listener) => listener.command != null) ?? listeners[0] ?? null;
}

/** A command line as a word or two: `node server.js`, `python3 http.server`. */
export function programOf(command: string | null | undefined): string | null {
  const words = (command ?? "")
    .trim()
    .split(/\s+/)
    .filter((word) => word !== "");
  const [first, ...rest] = words.map((word) => word.slice(word.lastIndexOf("/") + 1));
  if (first === undefined) return null;
  const argument = rest.find((word) => word !== "" && !word.startsWith("-"));
  return argument === undefined ? first : `${first} ${argument}`;
}

export interface Device {
  id: "full" | "phone" | "tablet";
  label: string;
  /** In CSS pixels, upright; null fills the pane. */
  size: { width: number; height: number } | null;
}

export const DEVICES: readonly Device[] = [
  { id: "full", label: "Full width", size: null },
  { id: "tablet", label: "Tablet", size: { width: 820, height: 1180 } },
  { id: "phone", label: "Phone", size: { width: 390, height: 844 } },
];

export interface Fit {
  width: number;
  height: number;
  /** At most 1. */
  scale: number;
}

/** How a device is drawn in a pane: whole, and never larger than it is. */
export function fit(device: Device, rotated: boolean, pane: { width: number; height: number }): Fit | null {
  if (device.size === null || pane.width <= 0 || pane.height <= 0) return null;
  const { width, height } = rotated ? { width: device.size.height, height: device.size.width } : device.size;
  return { width, height, scale: Math.min(1, pane.width / width, pane.height / height) };
}

/** What a pane shows in place of its page. */
export type Cover = "not-exposed" | "expired" | "paused" | "not-running" | "silent";

export function coverOf(port: Port | undefined, state: string, forced: boolean): Cover | null {
  if (port?.preview == null) return "not-exposed";
  if (port.preview.state === "expired") return "expired";
  if (state === "paused") return "paused";
  if (state !== "running") return "not-running";
  return port.listener === null && !forced ? "silent" : null;
}
