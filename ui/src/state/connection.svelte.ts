// Whether the server answers, as the whole page sees it. Fed by the transport and by the events' stream.
import type { ApiError } from "../api/client";
import type { StreamState } from "../api/transport";

/** `absent`: it never answered. `reconnecting`: it did, and does not now. `refused`: it does not take our token. */
export type Reach = "connecting" | "online" | "reconnecting" | "absent" | "refused";

/** A start of the server takes less; after this the page says that there is none. */
const ABSENT_AFTER_MS = 1_500;

export class ConnectionState {
  reach = $state<Reach>("connecting");
  /** Since when it does not answer. */
  since = $state<Date | null>(null);
  error = $state<ApiError | null>(null);
  private readonly began = Date.now();

  get online(): boolean {
    return this.reach === "online";
  }

  /** The transport heard an answer, or got none. */
  heard(answered: boolean): void {
    if (answered) {
      if (this.reach !== "refused") this.restored();
    } else this.lost(null);
  }

  /** The events' stream opened, broke, or was refused. */
  stream(state: StreamState, error?: ApiError): void {
    if (state === "open") this.restored();
    else if (state === "reconnecting") this.lost(error ?? null);
    else if (state === "closed" && error !== undefined) {
      this.error = error;
      this.reach = error.status === 401 || error.status === 403 || error.status === 421 ? "refused" : "reconnecting";
    }
  }

  private restored(): void {
    this.reach = "online";
    this.since = null;
    this.error = null;
  }

  private lost(error: ApiError | null): void {
    this.since ??= new Date();
    if (error !== null) this.error = error;
    if (this.reach === "online") this.reach = "reconnecting";
    else if (this.reach === "connecting" && Date.now() - this.began >= ABSENT_AFTER_MS) this.reach = "absent";
  }
}
