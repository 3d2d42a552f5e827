// Samples as series to draw: unknown times are gaps, never zero. And as files to keep. Pure.
import type { Sample } from "../api/client";

export type RangeName = "5m" | "1h" | "24h";

export interface Range {
  value: RangeName;
  label: string;
  seconds: number;
  /** How often the newest samples are asked for. */
  pollMs: number;
}

export const RANGES: Range[] = [
  { value: "5m", label: "5 min", seconds: 300, pollMs: 5_000 },
  { value: "1h", label: "1 h", seconds: 3_600, pollMs: 5_000 },
  { value: "24h", label: "24 h", seconds: 86_400, pollMs: 60_000 },
];

/** A sample may be late by this many intervals before its time counts as unknown. */
const LATE_INTERVALS = 2.5;

export interface Series {
  /** Seconds since 1970. */
  times: number[];
  cpu: (number | null)[];
  memory: (number | null)[];
  disk: (number | null)[];
  /** Stretches without samples inside of `from` to `to`, in the same seconds. */
  gaps: { from: number; to: number }[];
}

/** Samples of `from` to `to` (seconds since 1970), oldest first. */
export function seriesOf(samples: readonly Sample[], intervalSec: number, from: number, to: number): Series {
  const series: Series = { times: [], cpu: [], memory: [], disk: [], gaps: [] };
  const late = intervalSec * LATE_INTERVALS;
  const push = (time: number, sample: Sample | null) => {
    series.times.push(time);
    series.cpu.push(sample?.cpu_percent ?? null);
    series.memory.push(sample?.memory_resident_bytes ?? null);
    series.disk.push(sample?.disk_bytes ?? null);
  };
  let before = from;
  for (const sample of samples) {
    const time = Date.parse(sample.ts) / 1000;
    if (!(time >= from && time <= to) || time <= (series.times.at(-1) ?? -Infinity)) continue;
    if (time - before > late) {
      series.gaps.push({ from: before, to: time });
      // A point without values between two breaks the line.
      if (series.times.length > 0) push((before + time) / 2, null);
    }
    push(time, sample);
    before = time;
  }
  if (to - before > late) series.gaps.push({ from: before, to });
  return series;
}

/** `fresh` are newer or the same samples; those before `from` (seconds since 1970) are let go. */
export function mergeSamples(old: readonly Sample[], fresh: readonly Sample[], from: number): Sample[] {
  const first = fresh[0]?.ts;
  const kept = first === undefined ? old : old.filter((sample) => sample.ts < first);
  return [...kept, ...fresh].filter((sample) => Date.parse(sample.ts) / 1000 >= from);
}

/** Unknown figures are empty cells. */
export function toCsv(samples: readonly Sample[]): string {
  const rows = samples.map(({ ts, cpu_percent, memory_resident_bytes, disk_bytes }) =>
    [ts, cpu_percent, memory_resident_bytes, disk_bytes ?? ""].join(","),
  );
  return ["time,cpu_percent,memory_resident_bytes,disk_bytes", ...rows].join("\n") + "\n";
}

/** The top of an axis of percents: the whole, or above the largest value. */
export function percentTop(values: readonly (number | null)[], whole: number): number {
  return Math.max(whole, Math.ceil((largest(values) * 1.1) / 50) * 50);
}

/** The top of an axis of bytes: the next power of two, so that its half is a round number too. */
export function bytesTop(values: readonly (number | null)[], least: number): number {
  return 2 ** Math.ceil(Math.log2(Math.max(least, largest(values) * 1.1)));
}

function largest(values: readonly (number | null)[]): number {
  return values.reduce<number>((top, value) => Math.max(top, value ?? 0), 0);
}
