// Which language a file is written in, by its name; each grammar is loaded when a file first needs it.
import { LanguageDescription } from "@codemirror/language";
import { languages } from "@codemirror/language-data";
import type { Extension } from "@codemirror/state";

/** Names without an ending that say enough, beside those that language-data knows. */
const BY_NAME: Record<string, string> = {
  ".bashrc": "Shell",
  ".profile": "Shell",
  ".bash_profile": "Shell",
  ".zshrc": "Shell",
  "Cargo.lock": "TOML",
  "uv.lock": "TOML",
  "poetry.lock": "TOML",
  ".prettierrc": "JSON",
  ".babelrc": "JSON",
};

export function languageOf(name: string): LanguageDescription | null {
  const named = BY_NAME[name];
  if (named !== undefined) return LanguageDescription.matchLanguageName(languages, named);
  return LanguageDescription.matchFilename(languages, name);
}

/** The grammar for a file's name; nothing for one that has none, or whose grammar cannot be loaded. */
export async function loadLanguage(name: string): Promise<Extension> {
  const found = languageOf(name);
  if (found === null) return [];
  // Without its colours a file can still be read and edited.
  return found.load().catch(() => []);
}
