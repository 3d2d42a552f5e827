// Hands a text that the page made to the user as a file.

export function saveText(name: string, text: string, type = "text/plain"): void {
  const url = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  // The browser takes the content when it is asked to save, which may be a moment later.
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
