// The create form as data: what was typed, what is wrong with it by the API's bounds, and the body of the call. Pure.
import type { CreateBody, Limits, Template } from "../api/client";
import { parseDuration, writeDuration } from "../lib/duration";
import { megabytes } from "../lib/format";

export const CUSTOM = "custom";

export interface CreateForm {
  template: string;
  name: string;
  /** A named size, or `custom`. */
  size: string;
  cpu: number | null;
  memory: number | null;
  disk: number | null;
  timeout: string;
  idle: string;
  persistent: boolean;
  alwaysOn: boolean;
  /** `KEY=value`, one a line. */
  env: string;
  /** With commas between them. */
  tags: string;
}

/** By the API's name of the field. */
export type FieldErrors = Partial<Record<string, string>>;

/** What the form begins with: the server's own defaults. */
export function firstForm(limits: Limits, templateId: string): CreateForm {
  const { cpu_count = 1, memory_mb = 0, disk_size_mb = 0 } = limits.default_shape as Record<string, number>;
  const named = limits.sizes.find((size) => size.cpu_count === cpu_count && size.memory_mb === memory_mb);
  return {
    template: templateId,
    name: "",
    size: named?.name ?? CUSTOM,
    cpu: cpu_count,
    memory: memory_mb,
    disk: disk_size_mb,
    timeout: writeDuration(limits.timeout_sec_default),
    idle: writeDuration(limits.idle_timeout_sec[0] ?? 0),
    persistent: true,
    alwaysOn: false,
    env: "",
    tags: "",
  };
}

/** `KEY=value` lines as an object; empty lines and lines that begin with `#` are skipped. */
export function parseEnv(text: string): { env: Record<string, string>; error: string | null } {
  const env: Record<string, string> = {};
  for (const [at, raw] of text.split("\n").entries()) {
    const line = raw.trim();
    if (line === "" || line.startsWith("#")) continue;
    const equals = line.indexOf("=");
    const key = line
      .slice(0, equals)
      .replace(/^export\s+/, "")
      .trim();
    if (equals < 0 || !/^[A-Za-z_][A-Za-z0-9_]*$/.test(key)) {
      return { env, error: `Line ${at + 1} is not KEY=value` };
    }
    env[key] = unquote(line.slice(equals + 1).trim());
  }
  return { env, error: null };
}

function unquote(value: string): string {
  const quote = value.charAt(0);
  const quoted = value.length > 1 && (quote === '"' || quote === "'") && value.endsWith(quote);
  return quoted ? value.slice(1, -1) : value;
}

export function parseTags(text: string): string[] {
  return [...new Set(text.split(",").map((tag) => tag.trim()).filter(Boolean))]; // prettier-ignore
}

/** What is wrong, by the API's bounds; empty when nothing is. */
export function checkForm(form: CreateForm, limits: Limits, template: Template | undefined): FieldErrors {
  const errors: FieldErrors = {};
  const inRange = (field: string, value: number | null, range: number[], text: (value: number) => string) => {
    const [least = 0, most = Infinity] = range;
    if (value === null || !Number.isInteger(value) || value < least || value > most) {
      errors[field] = `Between ${text(least)} and ${text(most)}`;
    }
  };
  if (form.size === CUSTOM) {
    inRange("cpu_count", form.cpu, limits.cpu_count, String);
    inRange("memory_mb", form.memory, limits.memory_mb, (mb) => `${mb} MB`);
    const disks = [
      Math.max(limits.disk_size_mb[0] ?? 0, template?.disk_mb_min ?? 0),
      limits.disk_size_mb[1] ?? Infinity,
    ];
    inRange("disk_size_mb", form.disk, disks, (mb) => `${mb} MB`);
  }
  const seconds = (value: number) => (value === 0 ? "0 (off)" : writeDuration(value));
  if (!form.alwaysOn) inRange("timeout_sec", parseDuration(form.timeout), limits.timeout_sec, seconds);
  inRange("idle_timeout_sec", parseDuration(form.idle), limits.idle_timeout_sec, seconds);
  const { error } = parseEnv(form.env);
  if (error !== null) errors.env = error;
  return errors;
}

/** The call's body; of a form without errors. */
export function bodyOf(form: CreateForm): CreateBody {
  const body: CreateBody = { template_id: form.template, persistent: form.persistent, always_on: form.alwaysOn };
  if (form.name.trim() !== "") body.name = form.name.trim();
  if (form.size === CUSTOM) {
    body.cpu_count = form.cpu;
    body.memory_mb = form.memory;
    body.disk_size_mb = form.disk;
  } else body.size = form.size;
  if (!form.alwaysOn) body.timeout_sec = parseDuration(form.timeout);
  body.idle_timeout_sec = parseDuration(form.idle);
  const { env } = parseEnv(form.env);
  if (Object.keys(env).length > 0) body.env = env;
  const tags = parseTags(form.tags);
  if (tags.length > 0) body.tags = tags;
  return body;
}

/** `1 vCPU · 2 GB · 10 GB disk`. */
export function sizeText(size: { cpu_count: number; memory_mb: number; disk_size_mb: number }): string {
  return `${size.cpu_count} vCPU · ${megabytes(size.memory_mb)} · ${megabytes(size.disk_size_mb)} disk`;
}
