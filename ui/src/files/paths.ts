// Absolute paths in a sandbox, as text. Nothing here asks the sandbox.

export const WORKSPACE = "/workspace";

/** Longest name of a file in Linux, in bytes. */
const NAME_BYTES_MAX = 255;

export function nameOf(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1) || "/";
}

export function parentOf(path: string): string {
  const cut = path.lastIndexOf("/");
  return cut <= 0 ? "/" : path.slice(0, cut);
}

export function join(directory: string, name: string): string {
  return directory === "/" ? `/${name}` : `${directory}/${name}`;
}

/** `path` is `directory` itself or lies somewhere below it. */
export function isWithin(path: string, directory: string): boolean {
  return path === directory || path.startsWith(directory === "/" ? "/" : `${directory}/`);
}

/** Where `path` is after `from` became `to`. */
export function afterMove(path: string, from: string, to: string): string {
  return isWithin(path, from) ? to + path.slice(from.length) : path;
}

/** What somebody typed as a path, made absolute and plain; relative ones start at `base`. Null for nothing. */
export function typedPath(typed: string, base: string): string | null {
  const text = typed.trim();
  if (text === "") return null;
  const whole = text.startsWith("~") ? `/root${text.slice(1)}` : text.startsWith("/") ? text : `${base}/${text}`;
  const parts: string[] = [];
  for (const part of whole.split("/")) {
    if (part === "..") parts.pop();
    else if (part !== "" && part !== ".") parts.push(part);
  }
  return `/${parts.join("/")}`;
}

/** Why a name cannot be one, or null. Slashes are allowed where a path below the directory may be given. */
export function nameProblem(name: string, { slashes = false }: { slashes?: boolean } = {}): string | null {
  if (name === "") return "A name is needed.";
  if (name.includes("\0")) return "A name cannot hold a zero byte.";
  if (!slashes && name.includes("/")) return "A name cannot hold a slash.";
  for (const part of name.split("/")) {
    if (part === "") return "A part of the path is empty.";
    if (part === "." || part === "..") return `“${part}” is not a name.`;
    if (new TextEncoder().encode(part).length > NAME_BYTES_MAX) return `A name has at most ${NAME_BYTES_MAX} bytes.`;
  }
  return null;
}

/** Of several paths those that lie in none of the others: what has to be moved or removed. */
export function topmost(paths: readonly string[]): string[] {
  return paths.filter((path) => !paths.some((other) => other !== path && isWithin(path, other)));
}

export type Drop = { from: string; to: string };

/** What dropping `paths` on a directory moves. Null when it cannot be: onto itself, below itself, or where it is. */
export function dropInto(paths: readonly string[], directory: string): Drop[] | null {
  if (paths.some((path) => isWithin(directory, path))) return null;
  const drops = topmost(paths)
    .map((from) => ({ from, to: join(directory, nameOf(from)) }))
    .filter(({ from, to }) => from !== to);
  return drops.length === 0 ? null : drops;
}

/** A path as steps from the root, each with its own path. */
export function steps(path: string): { name: string; path: string }[] {
  const names = path.split("/").filter((part) => part !== "");
  return [
    { name: "/", path: "/" },
    ...names.map((name, at) => ({ name, path: `/${names.slice(0, at + 1).join("/")}` })),
  ];
}

/** Shortest way to tell apart files of the same name: the name, with as many directories as are needed. */
export function shortLabels(paths: readonly string[]): Map<string, { name: string; hint: string }> {
  const labels = new Map<string, { name: string; hint: string }>();
  for (const path of paths) {
    const name = nameOf(path);
    const twins = paths.filter((other) => other !== path && nameOf(other) === name);
    if (twins.length === 0) {
      labels.set(path, { name, hint: "" });
      continue;
    }
    const above = parentOf(path).split("/").filter(Boolean);
    let depth = 1;
    const tail = (of: string, count: number) => parentOf(of).split("/").filter(Boolean).slice(-count).join("/");
    while (depth < above.length && twins.some((twin) => tail(twin, depth) === tail(path, depth))) depth += 1;
    labels.set(path, { name, hint: tail(path, depth) || "/" });
  }
  return labels;
}
