// The line of a sparkline as an SVG path. Unknown values are gaps, never zero.

/** The size of the drawing's own coordinate system; the element stretches it. */
export const SPARK_WIDTH = 100;
export const SPARK_HEIGHT = 24;

/** Space above and below, so that the stroke is not cut off. */
const MARGIN = 1.5;

export interface SparkPaths {
  line: string;
  /** The same closed down to the bottom, for a soft fill. */
  area: string;
}

/** `max` is the value at the top; without it, the largest value is. */
export function sparkPaths(values: readonly (number | null)[], max?: number): SparkPaths {
  const known = values.filter((value) => value !== null);
  const top = max ?? known.reduce((most, value) => Math.max(most, value), 0);
  const step = values.length > 1 ? SPARK_WIDTH / (values.length - 1) : SPARK_WIDTH;
  const height = SPARK_HEIGHT - 2 * MARGIN;
  const y = (value: number) => {
    const share = top > 0 ? Math.min(1, Math.max(0, value / top)) : 0;
    return round(SPARK_HEIGHT - MARGIN - share * height);
  };
  const paths: SparkPaths = { line: "", area: "" };
  for (const { from, run } of runs(values)) {
    // One value alone is a short dash: a path of one point draws nothing.
    const last = run.length === 1 ? from * step + step / 2 : (from + run.length - 1) * step;
    const points = run.map((value, index) => `${round((from + index) * step)} ${y(value)}`);
    if (run.length === 1) points.push(`${round(last)} ${y(run[0] ?? 0)}`);
    paths.line += `M${points.join("L")}`;
    paths.area += `M${round(from * step)} ${SPARK_HEIGHT}L${points.join("L")}L${round(last)} ${SPARK_HEIGHT}Z`;
  }
  return paths;
}

/** The stretches without a gap. */
function runs(values: readonly (number | null)[]): { from: number; run: number[] }[] {
  const found: { from: number; run: number[] }[] = [];
  let open: { from: number; run: number[] } | null = null;
  values.forEach((value, index) => {
    if (value === null) open = null;
    else if (open === null) found.push((open = { from: index, run: [value] }));
    else open.run.push(value);
  });
  return found;
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}
