// Finds the visible elements of a role and an accessible name, as a person (or a screen reader) would. Arguments: role, name
// (exact, or a pattern when it begins and ends with "/"). Loaded before each search, since a page may have been loaded anew.
const ROLES = {
  button: "button, [role=button], input[type=submit], summary",
  link: "a[href], [role=link]",
  textbox: "input:not([type]), input[type=text], input[type=search], input[type=url], textarea, [role=textbox], [role=searchbox], [contenteditable=true]",
  spinbutton: "input[type=number], [role=spinbutton]",
  checkbox: "input[type=checkbox]:not([role]), [role=checkbox]",
  label: "label",
  region: "section[aria-label], [role=region]",
  heading: "h1, h2, h3, h4, [role=heading]",
  row: "tr, [role=row]",
  dialog: "dialog, [role=dialog], [role=alertdialog]",
  frame: "iframe",
};

const visible = (element) => {
  const box = element.getBoundingClientRect();
  return box.width > 0 && box.height > 0 && getComputedStyle(element).visibility !== "hidden";
};

const textOf = (ids) => ids.split(/\s+/).map((id) => document.getElementById(id)?.textContent ?? "").join(" ");

const nameOf = (element) => {
  const labelled = element.getAttribute("aria-labelledby");
  const label = element.labels?.[0]?.textContent;
  const fallback = element.getAttribute("title") ?? element.getAttribute("placeholder") ?? element.value ?? "";
  const name =
    (labelled && textOf(labelled)) || element.getAttribute("aria-label") || label || element.textContent.trim() || fallback;
  return name.replace(/\s+/g, " ").trim();
};

const [role, wanted] = arguments;
const matches = wanted.length > 2 && wanted.startsWith("/") && wanted.endsWith("/")
  ? (name) => new RegExp(wanted.slice(1, -1), "i").test(name)
  : (name) => name === wanted;
return [...document.querySelectorAll(ROLES[role] ?? `[role=${role}]`)].filter((element) => visible(element) && matches(nameOf(element)));
