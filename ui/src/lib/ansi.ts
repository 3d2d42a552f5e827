// One line of a program's output as pieces with a look: colours and weight of SGR sequences; all other escape sequences
// are left out. For logs, not for screens: a cursor that moves is a terminal's affair. Pure.

export interface Piece {
  text: string;
  /** `0` to `15`: the token `--ansi-…` of that number. */
  colour: number | null;
  bold: boolean;
  faint: boolean;
  italic: boolean;
}

const PLAIN: Omit<Piece, "text"> = { colour: null, bold: false, faint: false, italic: false };
const TAB_WIDTH = 8;

// CSI, OSC up to its end, and the other escapes of two characters.
// eslint-disable-next-line no-control-regex
const ESCAPE = /\x1b(?:\[([0-9;:?<=>]*)[ -/]*([@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])/g;
// eslint-disable-next-line no-control-regex
const CONTROL = /[\x00-\x08\x0b-\x1f\x7f]/g;

export const ANSI_NAMES = ["black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"] as const;

/** The token of a colour from 0 to 15. */
export function ansiToken(colour: number): string {
  return `var(--ansi-${colour >= 8 ? "bright-" : ""}${ANSI_NAMES[colour % 8]})`;
}

/** What a terminal would show of a line: after a carriage return the line begins anew. */
export function lastDraft(line: string): string {
  const trimmed = line.replace(/\r+$/, "");
  return trimmed.slice(trimmed.lastIndexOf("\r") + 1);
}

export function parseAnsi(line: string): Piece[] {
  const source = lastDraft(line);
  if (!source.includes("\x1b")) return source === "" ? [] : [{ text: clean(source), ...PLAIN }];
  const pieces: Piece[] = [];
  let style = PLAIN;
  let from = 0;
  const push = (text: string) => {
    if (text !== "") pieces.push({ text: clean(text), ...style });
  };
  for (const match of source.matchAll(ESCAPE)) {
    push(source.slice(from, match.index));
    from = match.index + match[0].length;
    if (match[2] === "m") style = styled(style, match[1] ?? "");
  }
  push(source.slice(from));
  return pieces;
}

/** The text without any looks. */
export function plainText(line: string): string {
  const source = lastDraft(line);
  return clean(source.includes("\x1b") ? source.replace(ESCAPE, "") : source);
}

function clean(text: string): string {
  const spaced = text.includes("\t") ? text.replaceAll("\t", " ".repeat(TAB_WIDTH)) : text;
  return spaced.replace(CONTROL, "");
}

function styled(style: Omit<Piece, "text">, parameters: string): Omit<Piece, "text"> {
  const codes = parameters.split(/[;:]/).map((code) => Number(code === "" ? 0 : code));
  let next = style;
  for (let at = 0; at < codes.length; at += 1) {
    const code = codes[at] ?? 0;
    if (code === 0) next = PLAIN;
    else if (code === 1) next = { ...next, bold: true };
    else if (code === 2) next = { ...next, faint: true };
    else if (code === 3) next = { ...next, italic: true };
    else if (code === 22) next = { ...next, bold: false, faint: false };
    else if (code === 23) next = { ...next, italic: false };
    else if (code >= 30 && code <= 37) next = { ...next, colour: code - 30 };
    else if (code >= 90 && code <= 97) next = { ...next, colour: code - 90 + 8 };
    else if (code === 39) next = { ...next, colour: null };
    else if (code === 38 || code === 48) {
      // `5;n` of 256 colours, of which the first 16 have names here; `2;r;g;b` has none.
      const indexed = codes[at + 1] === 5;
      const colour = codes[at + 2] ?? 16;
      if (code === 38 && indexed && colour < 16) next = { ...next, colour };
      at += indexed ? 2 : 4;
    }
  }
  return next;
}
