// How code looks in editors and comparisons: CodeMirror's classes drawn with the page's own tokens, so that light and dark
// follow the page and need no second theme.
import { HighlightStyle, syntaxHighlighting } from "@codemirror/language";
import type { Extension } from "@codemirror/state";
import { EditorView } from "@codemirror/view";
import { tags } from "@lezer/highlight";

const base = EditorView.theme({
  "&": { height: "100%", color: "var(--text)", backgroundColor: "var(--bg)", fontSize: "var(--text-sm)" },
  "&.cm-focused": { outline: "none" },
  ".cm-scroller": { fontFamily: "var(--font-mono)", lineHeight: "1.55" },
  ".cm-content": { caretColor: "var(--accent)", padding: "var(--space-2) 0" },
  ".cm-cursor, .cm-dropCursor": { borderLeftColor: "var(--accent)", borderLeftWidth: "2px" },
  ".cm-gutters": { backgroundColor: "var(--bg)", color: "var(--text-faint)", border: "none" },
  ".cm-lineNumbers .cm-gutterElement": { padding: "0 var(--space-3) 0 var(--space-4)", minWidth: "2.5rem" },
  ".cm-activeLine": { backgroundColor: "color-mix(in srgb, var(--bg-hover) 60%, transparent)" },
  ".cm-activeLineGutter": { backgroundColor: "transparent", color: "var(--text)" },
  "&.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground, .cm-selectionBackground": {
    backgroundColor: "color-mix(in srgb, var(--accent) 24%, transparent)",
  },
  ".cm-selectionMatch": { backgroundColor: "color-mix(in srgb, var(--accent) 14%, transparent)" },
  ".cm-searchMatch": { backgroundColor: "color-mix(in srgb, var(--warn) 30%, transparent)" },
  ".cm-searchMatch-selected": { backgroundColor: "color-mix(in srgb, var(--warn) 60%, transparent)" },
  "&.cm-focused .cm-matchingBracket": { backgroundColor: "var(--bg-active)", color: "inherit" },
  ".cm-foldPlaceholder": { backgroundColor: "var(--bg-hover)", border: "none", color: "var(--text-muted)" },
  ".cm-tooltip": {
    backgroundColor: "var(--bg-raised)",
    border: "1px solid var(--border)",
    borderRadius: "var(--radius-s)",
    boxShadow: "var(--shadow-m)",
  },
  ".cm-tooltip-autocomplete ul li[aria-selected]": { backgroundColor: "var(--accent-soft)", color: "var(--text)" },
  ".cm-panels": { backgroundColor: "var(--bg-raised)", color: "var(--text)", fontFamily: "var(--font-ui)" },
  ".cm-panels.cm-panels-top": { borderBottom: "1px solid var(--border)" },
  ".cm-panel.cm-search": { padding: "var(--space-2) var(--space-6) var(--space-2) var(--space-3)" },
  ".cm-panel.cm-search label": { fontSize: "var(--text-xs)", color: "var(--text-muted)" },
  ".cm-panel.cm-search [name=close]": {
    color: "var(--text-muted)",
    fontSize: "var(--text-lg)",
    padding: "0 var(--space-2)",
  },
  ".cm-textfield": {
    backgroundColor: "var(--bg)",
    border: "1px solid var(--border-strong)",
    borderRadius: "var(--radius-s)",
    padding: "var(--space-1) var(--space-2)",
    fontSize: "var(--text-sm)",
    fontFamily: "inherit",
    color: "inherit",
  },
  ".cm-button": {
    background: "var(--bg-hover)",
    border: "1px solid var(--border)",
    borderRadius: "var(--radius-s)",
    padding: "var(--space-1) var(--space-2)",
    fontSize: "var(--text-sm)",
    fontFamily: "inherit",
    color: "inherit",
  },
});

const merge = EditorView.theme({
  "&.cm-merge-a .cm-changedLine, .cm-deletedChunk": {
    backgroundColor: "color-mix(in srgb, var(--danger) 12%, transparent)",
  },
  "&.cm-merge-b .cm-changedLine, .cm-inlineChangedLine, .cm-insertedLine": {
    backgroundColor: "color-mix(in srgb, var(--ok) 12%, transparent)",
  },
  "&.cm-merge-a .cm-changedText, .cm-deletedChunk .cm-deletedText": {
    background: "color-mix(in srgb, var(--danger) 28%, transparent)",
  },
  "&.cm-merge-b .cm-changedText, .cm-changedText": {
    background: "color-mix(in srgb, var(--ok) 28%, transparent)",
  },
  ".cm-collapsedLines": {
    background: "var(--bg-sunken)",
    color: "var(--text-muted)",
    fontFamily: "var(--font-ui)",
    fontSize: "var(--text-xs)",
    padding: "var(--space-1) var(--space-3)",
  },
});

const highlight = HighlightStyle.define([
  { tag: [tags.keyword, tags.modifier, tags.operatorKeyword], color: "var(--chart-2)" },
  { tag: [tags.string, tags.special(tags.string), tags.regexp], color: "var(--chart-3)" },
  { tag: [tags.number, tags.bool, tags.null, tags.atom], color: "var(--chart-4)" },
  { tag: [tags.comment, tags.meta], color: "var(--text-faint)" },
  { tag: [tags.function(tags.variableName), tags.function(tags.propertyName)], color: "var(--chart-1)" },
  { tag: [tags.typeName, tags.className, tags.namespace, tags.tagName], color: "var(--warn)" },
  { tag: [tags.propertyName, tags.attributeName], color: "var(--chart-1)" },
  { tag: tags.heading, fontWeight: "600", color: "var(--chart-2)" },
  { tag: tags.strong, fontWeight: "600" },
  { tag: tags.emphasis, fontStyle: "italic" },
  { tag: [tags.link, tags.url], color: "var(--accent)", textDecoration: "underline" },
  { tag: tags.invalid, color: "var(--danger)" },
]);

/** Colours, fonts and measures of all code on the page. */
export const codeTheme: Extension = [base, syntaxHighlighting(highlight)];

/** Also of what differs between two texts. */
export const diffTheme: Extension = [codeTheme, merge];
