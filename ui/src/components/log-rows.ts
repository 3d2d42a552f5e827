// Where each line of a log lies when long ones wrap, which of them are in sight, and what of them is marked. Pure; the
// text is of one width and breaks anywhere, so its height follows from its length.
import type { Piece } from "../lib/ansi";

/** The row at which each line begins, and at the end the number of all rows. `columns` is null when nothing wraps. */
export function rowStarts(texts: readonly string[], columns: number | null): Uint32Array {
  const starts = new Uint32Array(texts.length + 1);
  let row = 0;
  texts.forEach((text, at) => {
    starts[at] = row;
    row += columns === null ? 1 : rowsOf(text, columns);
  });
  starts[texts.length] = row;
  return starts;
}

function rowsOf(text: string, columns: number): number {
  return Math.max(1, Math.ceil(widthOf(text) / Math.max(1, columns)));
}

/** In columns. What is not plain may be drawn wider than one: a row too many is better than a line cut off. */
function widthOf(text: string): number {
  let width = text.length;
  for (let at = 0; at < text.length; at += 1) if (text.charCodeAt(at) >= 0x1100) width += 1;
  return width;
}

/** Lines `from` to before `to`: those that touch rows `top` to `bottom`. */
export function linesIn(starts: Uint32Array, top: number, bottom: number): { from: number; to: number } {
  const count = starts.length - 1;
  const from = Math.max(0, firstAfter(starts, top) - 1);
  return { from: Math.min(from, count), to: Math.min(count, Math.max(from, firstAfter(starts, bottom))) };
}

/** The first line that begins after `row`. */
function firstAfter(starts: Uint32Array, row: number): number {
  let [low, high] = [0, starts.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((starts[middle] ?? 0) > row) high = middle;
    else low = middle + 1;
  }
  return low;
}

export interface MarkedPiece extends Piece {
  marked: boolean;
}

/** Cuts pieces where `query` begins and ends in the text that they are together; letters' case does not count. */
export function mark(pieces: readonly Piece[], query: string): MarkedPiece[] {
  const text = pieces.map((piece) => piece.text).join("");
  const ranges = rangesOf(text, query);
  if (ranges.length === 0) return pieces.map((piece) => ({ ...piece, marked: false }));
  const result: MarkedPiece[] = [];
  let start = 0;
  for (const piece of pieces) {
    const end = start + piece.text.length;
    let at = start;
    for (const [from, to] of ranges) {
      if (to <= at || from >= end) continue;
      const [low, high] = [Math.max(from, at), Math.min(to, end)];
      if (low > at) result.push({ ...piece, text: text.slice(at, low), marked: false });
      result.push({ ...piece, text: text.slice(low, high), marked: true });
      at = high;
    }
    if (at < end) result.push({ ...piece, text: text.slice(at, end), marked: false });
    start = end;
  }
  return result;
}

function rangesOf(text: string, query: string): [from: number, to: number][] {
  const [where, what] = [text.toLowerCase(), query.toLowerCase()];
  const ranges: [number, number][] = [];
  // Letters whose lower case is longer would shift what comes after them.
  if (what === "" || where.length !== text.length) return ranges;
  for (let at = where.indexOf(what); at >= 0; at = where.indexOf(what, at + what.length)) {
    ranges.push([at, at + what.length]);
  }
  return ranges;
}
