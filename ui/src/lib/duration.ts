// Lengths of time as people type them, to seconds and back.

const UNITS: Record<string, number> = { s: 1, sec: 1, m: 60, min: 60, h: 3600, d: 86400 };

/** `300`, `5m`, `5 min`, `1h 30m`, `1.5h` to seconds; `null` when it means nothing. */
export function parseDuration(text: string): number | null {
  const trimmed = text.trim().toLowerCase();
  if (/^\d+$/.test(trimmed)) return Number(trimmed);
  const parts = [...trimmed.matchAll(/(\d+(?:\.\d+)?)\s*([a-z]+)\s*/g)];
  if (parts.length === 0 || parts.map((part) => part[0]).join("") !== trimmed) return null;
  let seconds = 0;
  for (const [, number, unit] of parts) {
    const size = UNITS[unit ?? ""];
    if (size === undefined) return null;
    seconds += Number(number) * size;
  }
  return Math.round(seconds);
}

/** The shortest text that `parseDuration` takes back exactly: `5m`, `1h 30m`, `90s`. */
export function writeDuration(seconds: number): string {
  if (seconds === 0) return "0";
  const parts: string[] = [];
  let rest = seconds;
  for (const [unit, size] of [
    ["d", 86400],
    ["h", 3600],
    ["m", 60],
    ["s", 1],
  ] as const) {
    // prettier-ignore
    const whole = Math.floor(rest / size);
    if (whole > 0) parts.push(`${whole}${unit}`);
    rest -= whole * size;
  }
  return parts.join(" ");
}
