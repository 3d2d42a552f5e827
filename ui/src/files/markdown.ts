// Markdown of a sandbox as harmless HTML. A sandbox's files are what its programs made of them: no scripts, no styles, no
// forms, nothing loaded from elsewhere; links only say where they lead, and the page decides what a click does.
import DOMPurify from "dompurify";
import { marked } from "marked";
import { parentOf, typedPath } from "./paths";

/** Where a link in a file leads. */
export type LinkTarget =
  | { kind: "file"; path: string }
  | { kind: "web"; url: string }
  /** A place in the same text. */
  | { kind: "anchor"; id: string }
  | { kind: "none" };

export function linkTarget(href: string, from: string): LinkTarget {
  if (href.startsWith("#")) return { kind: "anchor", id: href.slice(1) };
  if (/^https?:\/\//i.test(href)) return { kind: "web", url: href };
  // Any other scheme, and `//host`.
  if (/^[a-z][a-z0-9+.-]*:/i.test(href) || href.startsWith("//")) return { kind: "none" };
  const plain = decoded(href.replace(/[?#].*$/, ""));
  const path = plain === null ? null : typedPath(plain.startsWith("~") ? `./${plain}` : plain, parentOf(from));
  return path === null ? { kind: "none" } : { kind: "file", path };
}

function decoded(text: string): string | null {
  try {
    return decodeURIComponent(text);
  } catch {
    return null;
  }
}

/** The HTML of a text. Links carry their target in `data-href`, pictures of the sandbox in `data-src`. */
export function drawMarkdown(text: string): string {
  const raw = marked.parse(text, { async: false, gfm: true });
  const fragment = DOMPurify.sanitize(raw, {
    USE_PROFILES: { html: true },
    FORBID_TAGS: ["style", "form", "button", "textarea", "select", "video", "audio", "source", "dialog"],
    FORBID_ATTR: ["style", "class", "srcset", "name", "background", "poster"],
    SANITIZE_NAMED_PROPS: true,
    RETURN_DOM_FRAGMENT: true,
  });
  for (const link of fragment.querySelectorAll("a[href], area[href]")) {
    const href = link.getAttribute("href") ?? "";
    link.removeAttribute("href");
    link.removeAttribute("target");
    link.setAttribute("data-href", href);
    link.setAttribute("role", "link");
    link.setAttribute("tabindex", "0");
    link.setAttribute("title", href);
  }
  for (const image of fragment.querySelectorAll("img")) {
    const source = image.getAttribute("src") ?? "";
    image.removeAttribute("src");
    if (source !== "") image.setAttribute("data-src", source);
    image.setAttribute("alt", image.getAttribute("alt") || source);
  }
  // Task lists are drawn with check boxes, which nothing would save.
  for (const input of fragment.querySelectorAll("input")) {
    if (input.getAttribute("type") === "checkbox") input.setAttribute("disabled", "");
    else input.remove();
  }
  const holder = document.createElement("div");
  holder.append(fragment);
  return holder.innerHTML;
}
