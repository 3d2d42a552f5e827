// What the page says about the server, by whether it answers.
import type { Reach } from "../state/connection.svelte";

const TEXTS: Record<Reach, string> = {
  connecting: "Connecting",
  online: "Connected",
  reconnecting: "Reconnecting",
  absent: "No server",
  refused: "Refused",
};

export function reachText(reach: Reach): string {
  return TEXTS[reach];
}

export function reachTone(reach: Reach): "ok" | "warn" | "danger" {
  if (reach === "online") return "ok";
  return reach === "absent" || reach === "refused" ? "danger" : "warn";
}
