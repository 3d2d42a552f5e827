// The connection to one terminal session: opens the session, attaches to it, comes back when the socket breaks, and never
// wakes a sandbox that sleeps unless it is told to. Knows bytes and sizes, nothing of how they are drawn.
import { asApiError, type ApiError } from "../api/client";
import type { TerminalSize } from "../api/terminal";
import { closing, isAwake, retryMs, type LinkState } from "./link-state";

export interface LinkHost {
  /** Opens a session, gives its id. */
  open: (size: TerminalSize) => Promise<string>;
  attach: (session: string, size: TerminalSize) => Promise<WebSocket>;
  /** The ids of the sessions that are there. */
  sessions: () => Promise<string[]>;
  /** The sandbox's state as it is now; asking does not wake it. */
  sandboxState: () => Promise<string>;
}

export interface LinkEvents {
  /** `anew`: the screen is drawn from its beginning, for a screen of this size. */
  onOutput: (bytes: Uint8Array, anew: TerminalSize | null) => void;
  onSession: (session: string) => void;
}

/** A screen of another size than the server drew is drawn first; if nothing is drawn, the size is told after this. */
const SIZE_MS = 400;

/** What may be typed before the shell is there. */
const EARLY_BYTES_MAX = 4096;

export class TerminalLink {
  state = $state.raw<LinkState>({ name: "idle" });
  /** Something was typed, by whoever: closing it may lose work. */
  touched: boolean;
  events: LinkEvents | null = null;
  private socket: WebSocket | null = null;
  private size: TerminalSize | null = null;
  private sent: TerminalSize | null = null;
  private early: Uint8Array[] = [];
  private attempt = 0;
  private timer: ReturnType<typeof setTimeout> | undefined;
  /** Grows with each beginning, so that answers to an earlier one are known as such. */
  private life = 0;
  private awake = false;
  private readonly encoder = new TextEncoder();

  constructor(
    private readonly host: LinkHost,
    public session: string | null,
  ) {
    this.touched = session !== null;
  }

  /** The size of the pane; the first one begins the connection. */
  resize(size: TerminalSize): void {
    this.size = size;
    if (this.state.name === "idle") this.begin();
    else if (this.state.name === "live") this.sendSize();
  }

  /** What the page hears of the sandbox. */
  sandboxIs(state: string): void {
    this.awake = isAwake(state);
    const { name } = this.state;
    if (this.awake) {
      if (name === "asleep") this.state = { name: "connecting" };
      if (name === "asleep" || name === "reconnecting") void this.again();
      else if (name === "idle") this.begin();
    } else if (name === "reconnecting") this.sleep();
  }

  send(data: Uint8Array | string): void {
    const bytes = typeof data === "string" ? this.encoder.encode(data) : data;
    if (this.state.name === "live" && this.socket !== null) {
      this.touched = true;
      this.socket.send(bytes as Uint8Array<ArrayBuffer>);
    } else if (this.state.name === "opening" || this.state.name === "connecting") {
      const waiting = this.early.reduce((sum, each) => sum + each.length, 0);
      if (waiting + bytes.length <= EARLY_BYTES_MAX) this.early.push(bytes);
    }
  }

  /** Tries now instead of later. */
  retry(): void {
    this.attempt = 0;
    void this.again();
  }

  /** A new shell in the place of one that ended. */
  restart(): void {
    this.drop();
    this.session = null;
    this.touched = false;
    this.begin();
  }

  /** Lets the server draw the screen anew, for a client that fell too far behind. */
  redraw(): void {
    if (this.session === null || this.state.name !== "live") return;
    this.drop();
    this.state = { name: "connecting" };
    void this.connect(this.session);
  }

  dispose(): void {
    this.drop();
    this.events = null;
    this.state = { name: "idle" };
  }

  private drop(): void {
    clearTimeout(this.timer);
    this.life += 1;
    const socket = this.socket;
    this.socket = null;
    this.sent = null;
    socket?.close();
  }

  private begin(): void {
    if (this.size === null || !this.awake) return;
    this.attempt = 0;
    this.early = [];
    if (this.session === null) void this.open(this.size);
    else {
      this.state = { name: "connecting" };
      void this.connect(this.session);
    }
  }

  private async open(size: TerminalSize): Promise<void> {
    const life = ++this.life;
    this.state = { name: "opening" };
    try {
      const session = await this.host.open(size);
      this.session = session;
      this.events?.onSession(session);
      if (life !== this.life) return;
      this.state = { name: "connecting" };
      await this.connect(session);
    } catch (error) {
      if (life === this.life) this.fail(asApiError(error));
    }
  }

  private async connect(session: string): Promise<void> {
    const life = ++this.life;
    const size = this.size ?? { cols: 80, rows: 24 };
    let socket: WebSocket;
    try {
      socket = await this.host.attach(session, size);
    } catch (error) {
      if (life === this.life) this.broke(asApiError(error).message, false);
      return;
    }
    if (life !== this.life) return socket.close();
    this.socket = socket;
    this.sent = size;
    socket.binaryType = "arraybuffer";
    let opened = false;
    let anew: TerminalSize | null = size;
    socket.onopen = () => {
      if (life !== this.life) return;
      opened = true;
      this.opened();
    };
    socket.onmessage = ({ data }: MessageEvent<ArrayBuffer | string>) => {
      if (life !== this.life) return;
      const bytes = typeof data === "string" ? this.encoder.encode(data) : new Uint8Array(data);
      this.events?.onOutput(bytes, anew);
      anew = null;
    };
    socket.onclose = ({ code, reason }) => {
      if (life !== this.life) return;
      this.socket = null;
      if (opened) this.closed(code, reason);
      // A page is not told why a WebSocket was refused; the next try asks.
      else this.broke("The terminal could not be reached", false);
    };
  }

  private opened(): void {
    this.attempt = 0;
    this.state = { name: "live" };
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.sendSize(), SIZE_MS);
    for (const bytes of this.early.splice(0)) this.send(bytes);
  }

  private sendSize(): void {
    const { size, sent } = this;
    if (size === null || (sent !== null && sent.cols === size.cols && sent.rows === size.rows)) return;
    this.sent = size;
    this.socket?.send(JSON.stringify({ type: "resize", ...size }));
  }

  private closed(code: number, reason: string): void {
    const meaning = closing(code, reason);
    if (meaning.kind === "ended") this.state = { name: "ended", exitCode: meaning.exitCode };
    else if (meaning.kind === "failed") this.state = { name: "failed", message: meaning.message };
    else this.broke(meaning.reason, meaning.calm);
  }

  private broke(reason: string, calm: boolean): void {
    if (!this.awake) return this.sleep();
    this.state = { name: "reconnecting", attempt: this.attempt, reason };
    clearTimeout(this.timer);
    this.timer = setTimeout(() => void this.again(), retryMs(this.attempt, calm));
    this.attempt += 1;
  }

  private sleep(): void {
    clearTimeout(this.timer);
    this.state = { name: "asleep" };
  }

  /** Looks whether there is something to come back to, and comes back. */
  private async again(): Promise<void> {
    clearTimeout(this.timer);
    const life = ++this.life;
    const { session } = this;
    if (session === null) return this.begin();
    try {
      const state = await this.host.sandboxState();
      if (life !== this.life) return;
      this.awake = isAwake(state);
      if (!this.awake) return this.sleep();
      const sessions = await this.host.sessions();
      if (life !== this.life) return;
      if (!sessions.includes(session)) this.state = { name: "ended", exitCode: null };
      else await this.connect(session);
    } catch (error) {
      if (life === this.life) this.broke(asApiError(error).message, false);
    }
  }

  private fail(error: ApiError): void {
    if (error.unreachable) this.broke(error.message, false);
    else this.state = { name: "failed", message: error.message, requestId: error.requestId };
  }
}
