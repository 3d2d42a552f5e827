// Calls on previews: ports of a sandbox behind a loopback address, who listens in it, and links that open private ones.
import { segment, type Transport } from "./transport";
import type { components } from "./types.gen";

type Schemas = components["schemas"];
export type Preview = Schemas["PreviewRecord"];
export type PortListener = Schemas["ListenerRecord"];
export type SharedPreview = Schemas["SharedPreview"];
export type Share = Schemas["ShareRecord"];
export type Scope = "read" | "interact";
export type Visibility = "public" | "private";

export interface PreviewChange {
  port: number;
  name?: string;
  visibility?: Visibility;
}

export function previewsApi({ send }: Transport) {
  const of = (id: string) => `/sandboxes/${segment(id)}`;
  const one = (id: string, preview: string) => `${of(id)}/previews/${segment(preview)}`;
  return {
    list: (id: string) => send<Preview[]>("GET", `${of(id)}/previews`),
    /** Makes the port's preview, or changes the one that it has. Wakes nothing. */
    put: (id: string, change: PreviewChange) => send<Preview>("POST", `${of(id)}/previews`, { body: change }),
    remove: (id: string, preview: string) => send<void>("DELETE", one(id, preview)),
    /** Who listens in the guest now; nobody while it does not run. Wakes nothing. */
    listeners: (id: string) => send<PortListener[]>("GET", `${of(id)}/ports`),
    /** A token for this page's own panes; it is not listed among the shares. */
    token: (id: string, port: number, expires_in: number) =>
      send<Schemas["PreviewTokenRecord"]>("POST", `${of(id)}/preview-token`, {
        body: { port, expires_in, scope: "interact" satisfies Scope },
      }),
    /** A URL with a fresh token for one preview. The token is told once. */
    share: (id: string, preview: string, scope: Scope, ttl_seconds: number) =>
      send<SharedPreview>("POST", `${one(id, preview)}/share`, { body: { scope, ttl_seconds }, whole: true }),
    /** Takes back every token that `share` made for the preview. */
    revokeShares: (id: string, preview: string) => send<void>("DELETE", `${one(id, preview)}/share`),
    /** Links that open all previews of the sandbox. */
    shares: (id: string) => send<Share[]>("GET", `${of(id)}/shares`),
    /** `expires_in` in seconds; never when null. */
    createShare: (id: string, port: number, scope: Scope, expires_in: number | null) =>
      send<Share>("POST", `${of(id)}/shares`, {
        body: { port, scope, ...(expires_in === null ? {} : { expires_in }) },
      }),
    revokeShare: (id: string, share: string) => send<void>("DELETE", `${of(id)}/shares/${segment(share)}`),
  };
}
