// The previews of one sandbox: what is exposed, who listens, and the panes that show them. Panes are remembered over a
// reload of the page.
import { asApiError, type Api, type ApiError, type CoveEvent, type PortListener, type Preview } from "../api/client";
import { isGap, type Events } from "../state/events.svelte";
import { begin, canGo, current, go, visit, type History, type Place } from "./preview-address";
import { DEVICES, portsOf, type Device } from "./preview-view";

/** Panes beside each other. */
export const PANES_MAX = 4;

/** How long a pane may use a private preview before it asks for another token. */
const TOKEN_SECONDS = 12 * 3600;

let panesMade = 0;

export class Pane {
  readonly id = `pane-${(panesMade += 1)}`;
  history = $state.raw<History>(begin({ port: 80, path: "/" }));
  readonly place = $derived(current(this.history));
  deviceId = $state<Device["id"]>("full");
  rotated = $state(false);
  /** Its share of the room. */
  weight = $state(1);
  /** Goes up to load the page anew. */
  turn = $state(0);
  /** Loads also where nothing seems to listen. */
  forced = $state(false);
  readonly device = $derived(DEVICES.find((device) => device.id === this.deviceId) as Device);

  constructor(place: Place) {
    this.history = begin(place);
  }

  open(place: Place): void {
    this.forced = false;
    this.history = visit(this.history, place);
    this.turn += 1;
  }

  step(steps: number): void {
    if (!canGo(this.history, steps)) return;
    this.history = go(this.history, steps);
    this.turn += 1;
  }

  reload(): void {
    this.turn += 1;
  }
}

export class SandboxPreviews {
  previews = $state.raw<Preview[] | null>(null);
  listeners = $state.raw<PortListener[]>([]);
  /** The guest was asked at least once. */
  listenersKnown = $state(false);
  error = $state.raw<ApiError | null>(null);
  panes = $state.raw<Pane[]>([]);
  focused = $state<string | null>(null);
  readonly ports = $derived(portsOf(this.previews ?? [], this.listeners));
  private readonly tokens = new Map<string, { token: string; until: number }>();
  private readonly key: string;
  private loading: Promise<void> | null = null;
  private again = false;

  constructor(
    readonly sandbox: string,
    readonly api: Api,
  ) {
    this.key = `cove.previews:${sandbox}`;
    this.panes = remembered(this.key).map((place) => new Pane(place));
    this.focused = this.panes[0]?.id ?? null;
  }

  /** Follows what happens until the function that it gives is called. */
  follow(events: Events): () => void {
    void this.refresh();
    return events.ofSandbox(this.sandbox, (happening) => {
      if (!isGap(happening)) this.hear(happening);
      if (isGap(happening) || /^sandbox\.(port|preview|share|resumed|paused|ready)/.test(happening.type))
        void this.refresh();
    });
  }

  /** What an event says is shown before the guest is asked. */
  private hear({ type, port, address, command, pid }: CoveEvent): void {
    if (typeof port !== "number" || typeof address !== "string" || !type.startsWith("sandbox.port.")) return;
    const others = this.listeners.filter((listener) => listener.port !== port || listener.address !== address);
    const listener: PortListener = {
      ...{ port, address, preview_id: null, url: null },
      pid: typeof pid === "number" ? pid : null,
      command: typeof command === "string" ? command : null,
    };
    this.listeners = type === "sandbox.port.opened" ? [...others, listener] : others;
  }

  port(number: number) {
    return this.ports.find(({ port }) => port === number);
  }

  /** Neither call wakes the sandbox. Calls that come during one are one more after it. */
  refresh(): Promise<void> {
    if (this.loading !== null) {
      this.again = true;
      return this.loading;
    }
    this.loading = this.fetch().finally(() => {
      this.loading = null;
      if (!this.again) return;
      this.again = false;
      void this.refresh();
    });
    return this.loading;
  }

  private async fetch(): Promise<void> {
    // The server knows its previews; who listens a busy guest may take long to say.
    const asked = this.api.previews.listeners(this.sandbox).then(
      (listeners) => (this.listeners = listeners),
      (error: unknown) => (this.error = asApiError(error)),
    );
    try {
      this.previews = await this.api.previews.list(this.sandbox);
      this.error = null;
    } catch (error) {
      this.error = asApiError(error);
    }
    await asked;
    this.listenersKnown = true;
  }

  /** Shows a port: in the pane that shows it already, in the one that is used, or in a new one. */
  show(port: number, { inNew = false }: { inNew?: boolean } = {}): void {
    const shown = this.panes.find((pane) => pane.place.port === port);
    const used = this.panes.find((pane) => pane.id === this.focused) ?? this.panes[0];
    if (shown !== undefined && !inNew) {
      this.focused = shown.id;
      shown.reload();
    } else if (used !== undefined && (!inNew || this.panes.length >= PANES_MAX)) {
      used.open({ port, path: "/" });
      this.focused = used.id;
    } else {
      this.add({ port, path: "/" });
    }
    this.remember();
  }

  add(place: Place): void {
    if (this.panes.length >= PANES_MAX) return;
    const pane = new Pane(place);
    this.panes = [...this.panes, pane];
    this.focused = pane.id;
    this.remember();
  }

  close(pane: Pane): void {
    this.panes = this.panes.filter((other) => other !== pane);
    if (this.focused === pane.id) this.focused = this.panes[0]?.id ?? null;
    this.remember();
  }

  /** Makes the port's preview, when it has none, and shows it. */
  async expose(port: number): Promise<void> {
    await this.api.previews.put(this.sandbox, { port });
    await this.refresh();
    this.show(port);
  }

  async setVisibility(preview: Preview, visibility: "public" | "private"): Promise<void> {
    await this.api.previews.put(this.sandbox, { port: preview.port, visibility });
    await this.refresh();
    for (const pane of this.panes) if (pane.place.port === preview.port) pane.reload();
  }

  async remove(preview: Preview): Promise<void> {
    await this.api.previews.remove(this.sandbox, preview.id);
    this.tokens.delete(preview.id);
    for (const pane of this.panes.filter(({ place }) => place.port === preview.port)) this.close(pane);
    await this.refresh();
  }

  /** What a private preview is opened with; null for a public one. */
  async token(preview: Preview): Promise<string | null> {
    if (preview.visibility !== "private") return null;
    const known = this.tokens.get(preview.id);
    if (known !== undefined && known.until > Date.now()) return known.token;
    const { token } = await this.api.previews.token(this.sandbox, preview.port, TOKEN_SECONDS);
    // Renewed well before its time is over.
    this.tokens.set(preview.id, { token, until: Date.now() + (TOKEN_SECONDS * 1000) / 2 });
    return token;
  }

  remember(): void {
    try {
      sessionStorage.setItem(this.key, JSON.stringify(this.panes.map(({ place }) => place)));
    } catch {
      // No room: after a reload there are no panes.
    }
  }
}

function remembered(key: string): Place[] {
  try {
    const places = JSON.parse(sessionStorage.getItem(key) ?? "[]") as Place[];
    return places.filter((place) => Number.isInteger(place.port) && place.path.startsWith("/")).slice(0, PANES_MAX);
  } catch {
    return [];
  }
}

const all = new Map<string, SandboxPreviews>();

/** The previews of a sandbox; made when they are first looked at. */
export function sandboxPreviews(sandbox: string, api: Api): SandboxPreviews {
  let found = all.get(sandbox);
  if (found === undefined || found.api !== api) {
    found = new SandboxPreviews(sandbox, api);
    all.set(sandbox, found);
  }
  return found;
}
