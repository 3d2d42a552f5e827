// Figures of a sandbox over time. Asking does not wake it up.
import { segment, type Transport } from "./transport";
import type { components } from "./types.gen";

export type Metrics = components["schemas"]["MetricsRecord"];
export type Sample = components["schemas"]["SampleRecord"];

export function metricsApi({ send }: Transport) {
  return {
    /** `window` is a number of seconds with `s`, `m` or `h` behind it, such as `5m`; at most `24h`. */
    of: (id: string, window: string, signal?: AbortSignal) =>
      send<Metrics>("GET", `/sandboxes/${segment(id)}/metrics`, {
        query: { window },
        ...(signal === undefined ? {} : { signal }),
      }),
  };
}
