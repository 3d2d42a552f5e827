import { expect, test, vi } from "vitest";
import { keyCaps, matches, parseKeys, placeOf, Shortcuts } from "./shortcuts";

const press = (key: string, more: KeyboardEventInit = {}) => new KeyboardEvent("keydown", { key, ...more });

test.each([
  ["mod+k", press("k", { ctrlKey: true }), true],
  ["mod+k", press("k"), false],
  ["mod+k", press("k", { metaKey: true }), false],
  ["mod+shift+p", press("P", { ctrlKey: true, shiftKey: true }), true],
  ["p", press("P", { shiftKey: true }), false],
  ["?", press("?", { shiftKey: true }), true],
  ["/", press("/"), true],
  ["x", press("x", { altKey: true }), false],
])("%s", (keys, event, fits) => {
  expect(matches(parseKeys(keys), event, false)).toBe(fits);
});

test("caps are what stands on the keys", () => {
  expect(keyCaps("mod+shift+k", false)).toEqual(["Ctrl", "Shift", "K"]);
  expect(keyCaps("mod+shift+k", true)).toEqual(["⌘", "⇧", "K"]);
});

test("where a key is pressed decides what it does", () => {
  document.body.innerHTML = `
    <input id="i"><div class="xterm"><textarea id="t"></textarea></div><div role="dialog"><button id="d"></button></div>
    <button id="b"></button>`;
  const places = ["i", "t", "d", "b"].map((id) => placeOf(document.getElementById(id)));
  expect(places).toEqual(["typing", "terminal", "overlay", "page"]);

  const shortcuts = new Shortcuts();
  const [plain, mod, everywhere] = [vi.fn(), vi.fn(), vi.fn()];
  shortcuts.add(
    { keys: "p", label: "Plain", group: "", run: plain },
    { keys: "mod+j", label: "Mod", group: "", run: mod },
    { keys: "mod+1", label: "Tab", group: "", run: everywhere, everywhere: true },
  );
  const stop = shortcuts.listen();
  for (const id of ["i", "t", "d", "b"]) {
    const target = document.getElementById(id);
    target?.dispatchEvent(press("p", { bubbles: true }));
    target?.dispatchEvent(press("j", { ctrlKey: true, bubbles: true }));
    target?.dispatchEvent(press("1", { ctrlKey: true, bubbles: true }));
  }
  stop();
  expect([plain, mod, everywhere].map((run) => run.mock.calls.length)).toEqual([1, 2, 3]);
});

test("of two with the same keys the later one wins, until it is taken out or off", () => {
  const shortcuts = new Shortcuts();
  const [first, second] = [vi.fn(), vi.fn()];
  let on = true;
  shortcuts.add({ keys: "p", label: "", group: "", run: first });
  const remove = shortcuts.add({ keys: "p", label: "", group: "", run: second, enabled: () => on });
  shortcuts.handle(press("p"));
  on = false;
  shortcuts.handle(press("p"));
  remove();
  shortcuts.handle(press("p"));
  expect([first.mock.calls.length, second.mock.calls.length]).toEqual([2, 1]);
});

test("a widget with keys of its own keeps those without a modifier", () => {
  document.body.innerHTML = `<div data-own-keys><div id="row"></div></div>`;
  expect(placeOf(document.getElementById("row"))).toBe("typing");
});
