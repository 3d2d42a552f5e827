// Which rows of a long list to draw; pure.

/** Rows `from` to before `to`, for a view of `height` that is scrolled to `top`, with `spare` rows beyond each edge. */
export function windowOf(
  count: number,
  rowHeight: number,
  top: number,
  height: number,
  spare: number,
): { from: number; to: number } {
  const from = Math.min(Math.max(0, Math.floor(top / rowHeight) - spare), count);
  const to = Math.min(count, Math.ceil((top + height) / rowHeight) + spare);
  return { from, to: Math.max(from, to) };
}
