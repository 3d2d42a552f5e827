// xterm.js as a pane uses it: made, drawn with the page's tokens, fed by a queue, and fitted to its element. The DOM
// renderer: WebGL costs more than it gives in WebKitGTK.
import { FitAddon } from "@xterm/addon-fit";
import { SearchAddon } from "@xterm/addon-search";
import { WebLinksAddon } from "@xterm/addon-web-links";
import { Terminal } from "@xterm/xterm";
import type { TerminalSize } from "../api/terminal";
import { isMac } from "../lib/shortcuts";
import { onThemeChange } from "../lib/theme.svelte";
import { OutputQueue } from "./output-queue";
import { monoFont, terminalTheme } from "./terminal-theme";

const SCROLLBACK_LINES = 10_000;
/** The server takes sizes up to these. */
const COLS_MAX = 500;
const ROWS_MAX = 200;
/** A program is told of a new size when the dragging rests. */
const RESIZE_SETTLE_MS = 60;
/** A screen that the server draws anew is there after this. */
const DRAW_MS = 120;
/** Clears screen, scrollback, colours and modes. */
const RESET = new TextEncoder().encode("\x1bc");

export interface ScreenOptions {
  fontSize: number;
  screenReader: boolean;
  onInput: (data: string | Uint8Array) => void;
  onSize: (size: TerminalSize) => void;
  onTitle: (title: string) => void;
  /** A link was opened with the modifier held. */
  onLink: (uri: string) => void;
  onLinkHover: (uri: string | null) => void;
  /** The screen fell too far behind what the program writes. */
  onOverflow: () => void;
}

export class Screen {
  readonly terminal: Terminal;
  readonly search = new SearchAddon();
  private readonly fit = new FitAddon();
  private readonly queue: OutputQueue;
  private readonly undo: (() => void)[] = [];
  private settle: ReturnType<typeof setTimeout> | undefined;
  private sized = false;
  private drawing = false;
  private drawn: ReturnType<typeof setTimeout> | undefined;

  constructor(
    private readonly element: HTMLElement,
    private readonly options: ScreenOptions,
  ) {
    const open = (event: MouseEvent, uri: string) => {
      if (isMac ? event.metaKey : event.ctrlKey) options.onLink(uri);
    };
    const hover = {
      hover: (_: MouseEvent, uri: string) => options.onLinkHover(uri),
      leave: () => options.onLinkHover(null),
    };
    this.terminal = new Terminal({
      // Search decorations are a proposed interface.
      allowProposedApi: true,
      cursorBlink: false,
      fontFamily: monoFont(element),
      fontSize: options.fontSize,
      linkHandler: { activate: open, ...hover },
      macOptionIsMeta: true,
      minimumContrastRatio: 4.5,
      rightClickSelectsWord: false,
      screenReaderMode: options.screenReader,
      scrollback: SCROLLBACK_LINES,
      theme: terminalTheme(element),
    });
    this.queue = new OutputQueue({
      write: (bytes, done) => this.terminal.write(bytes, done),
      onOverflow: options.onOverflow,
    });
    this.terminal.loadAddon(this.fit);
    this.terminal.loadAddon(this.search);
    this.terminal.loadAddon(new WebLinksAddon(open, hover));
    this.terminal.open(element);
    this.terminal.attachCustomKeyEventHandler((event) => this.isForTerminal(event));
    this.terminal.onData(options.onInput);
    this.terminal.onBinary((data) => options.onInput(Uint8Array.from(data, (char) => char.charCodeAt(0))));
    this.terminal.onTitleChange(options.onTitle);
    this.terminal.onResize(() => this.tellSize());
    this.undo.push(onThemeChange(() => this.recolour()));
    const observer = new ResizeObserver(() => this.refit());
    observer.observe(element);
    this.undo.push(() => observer.disconnect());
  }

  /**
   * `anew`: what was there is wiped first, and what comes was drawn for a screen of this size: until it is there the
   * terminal keeps to that, since lines and cursor would come to lie elsewhere on another.
   */
  write(bytes: Uint8Array, anew: TerminalSize | null): void {
    if (anew !== null) {
      this.queue.clear();
      this.queue.push(RESET);
      this.drawing = true;
      this.terminal.resize(anew.cols, anew.rows);
      clearTimeout(this.drawn);
      this.drawn = setTimeout(() => {
        this.drawing = false;
        this.refit();
        this.options.onSize({ cols: this.terminal.cols, rows: this.terminal.rows });
      }, DRAW_MS);
    }
    this.queue.push(bytes);
  }

  /** Makes the terminal as large as its element; not while the element is hidden. */
  refit(): void {
    if (this.drawing || this.element.offsetWidth === 0 || this.element.offsetHeight === 0) return;
    const size = this.fit.proposeDimensions();
    if (size === undefined || Number.isNaN(size.cols) || Number.isNaN(size.rows)) return;
    const cols = Math.min(COLS_MAX, Math.max(2, size.cols));
    const rows = Math.min(ROWS_MAX, Math.max(1, size.rows));
    if (cols !== this.terminal.cols || rows !== this.terminal.rows) this.terminal.resize(cols, rows);
    if (!this.sized) this.tellSize();
  }

  look(fontSize: number, screenReader: boolean): void {
    const { options } = this.terminal;
    if (options.screenReaderMode !== screenReader) options.screenReaderMode = screenReader;
    if (options.fontSize === fontSize) return;
    options.fontSize = fontSize;
    this.refit();
  }

  dispose(): void {
    clearTimeout(this.settle);
    clearTimeout(this.drawn);
    for (const undo of this.undo) undo();
    this.queue.clear();
    this.terminal.dispose();
  }

  private tellSize(): void {
    if (this.drawing) return;
    const tell = () => this.options.onSize({ cols: this.terminal.cols, rows: this.terminal.rows });
    clearTimeout(this.settle);
    if (this.sized) this.settle = setTimeout(tell, RESIZE_SETTLE_MS);
    else {
      this.sized = true;
      tell();
    }
  }

  private recolour(): void {
    this.terminal.options.theme = terminalTheme(this.element);
  }

  /** Pasting is left to the browser, which asks nobody; it comes back as a `paste` event that xterm takes. */
  private isForTerminal(event: KeyboardEvent): boolean {
    const mod = isMac ? event.metaKey : event.ctrlKey && event.shiftKey;
    return !(mod && event.key.toLowerCase() === "v");
  }
}
