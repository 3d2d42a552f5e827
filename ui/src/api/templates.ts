// Calls on templates.
import { segment, type Transport } from "./transport";
import type { components } from "./types.gen";

type Schemas = components["schemas"];
export type Template = Schemas["TemplateRecord"];
export type TemplateList = Schemas["TemplateList"];

export function templatesApi({ send }: Transport) {
  return {
    list: () => send<TemplateList>("GET", "/sandbox-templates", { whole: true }),
    get: (id: string) => send<Template>("GET", `/sandbox-templates/${segment(id)}`),
    /** Answers when creates of that kind do not boot any more. Takes as long as a boot. */
    warm: (
      id: string,
      shape: Partial<Pick<Schemas["CreateBody"], "size" | "cpu_count" | "memory_mb" | "disk_size_mb">>,
    ) => send<unknown>("POST", `/sandbox-templates/${segment(id)}/warm`, { body: shape }),
  };
}
