// What a file's bytes are to a reader: text that can be edited, a picture, or something to download. Pure.
import { nameOf } from "./paths";

/** Larger files are not opened as text: an editor in a page becomes slow, and the whole text is sent with each save. */
export const TEXT_BYTES_MAX = 5 * 1024 * 1024;

/** Larger pictures are not shown. */
export const IMAGE_BYTES_MAX = 32 * 1024 * 1024;

const IMAGE_TYPES: Record<string, string> = {
  png: "image/png",
  jpg: "image/jpeg",
  jpeg: "image/jpeg",
  gif: "image/gif",
  webp: "image/webp",
  avif: "image/avif",
  bmp: "image/bmp",
  ico: "image/x-icon",
  svg: "image/svg+xml",
};

function endingOf(path: string): string {
  const name = nameOf(path);
  const dot = name.lastIndexOf(".");
  return dot < 0 ? "" : name.slice(dot + 1).toLowerCase();
}

/** The media type of a picture, by its name; null for anything else. */
export function imageType(path: string): string | null {
  return IMAGE_TYPES[endingOf(path)] ?? null;
}

export function isMarkdown(path: string): boolean {
  return ["md", "markdown", "mdown", "mkd"].includes(endingOf(path));
}

/** Drawn as a picture, but also text. */
export function isSvg(path: string): boolean {
  return endingOf(path) === "svg";
}

/** The text of a file, or null when its bytes are no text. Nothing is changed: encoding it gives the same bytes. */
export function textOf(bytes: Uint8Array<ArrayBuffer>): string | null {
  if (bytes.includes(0)) return null;
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return null;
  }
}

/**
 * What ends a line. Only a file that uses CRLF throughout is edited as such; in a mixed one each CR stays where it is, as a
 * character, so that saving changes no line that nobody touched.
 */
export function lineEnding(text: string): "\n" | "\r\n" {
  const crlf = text.split("\r\n").length - 1;
  if (crlf === 0) return "\n";
  const lf = text.split("\n").length - 1;
  const cr = text.split("\r").length - 1;
  return lf === crlf && cr === crlf ? "\r\n" : "\n";
}
