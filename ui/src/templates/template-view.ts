// A template's facts as text; pure.
import type { Template } from "../api/client";
import type { Fact } from "../components/Facts.svelte";
import { megabytes } from "../lib/format";

export function templateFacts(template: Template): Fact[] {
  return [
    { label: "Also called", value: template.aliases.length > 0 ? template.aliases.join(", ") : "nothing else" },
    { label: "Works in", value: template.workdir, mono: true },
    { label: "Smallest disk", value: megabytes(template.disk_mb_min) },
    ...(template.preview_port ? [{ label: "Preview port", value: String(template.preview_port) }] : []),
    { label: "Version", value: template.version, mono: true },
  ];
}
