import { describe, expect, test } from "vitest";
import { drawMarkdown, linkTarget } from "./markdown";

describe("a link", () => {
  test.each([
    ["https://example.org/a", { kind: "web", url: "https://example.org/a" }],
    ["docs/a%20b.md#part", { kind: "file", path: "/w/docs/a b.md" }],
    ["../x", { kind: "file", path: "/x" }],
    ["/etc/hosts", { kind: "file", path: "/etc/hosts" }],
    ["#part", { kind: "anchor", id: "part" }],
    ["javascript:alert(1)", { kind: "none" }],
    ["JAVASCRIPT:alert(1)", { kind: "none" }],
    ["data:text/html,x", { kind: "none" }],
    ["//evil.example/x", { kind: "none" }],
    ["%zz", { kind: "none" }],
  ])("%s", (href, expected) => expect(linkTarget(href, "/w/README.md")).toEqual(expected));
});

describe("markdown", () => {
  const drawn = (text: string) => {
    const holder = document.createElement("div");
    holder.innerHTML = drawMarkdown(text);
    return holder;
  };

  test("is drawn", () => {
    const page = drawn("# Hi\n\n- [x] done\n\n| a | b |\n|---|---|\n| 1 | 2 |");
    expect(page.querySelector("h1")?.textContent).toBe("Hi");
    expect(page.querySelector("input")?.disabled).toBe(true);
    expect(page.querySelectorAll("td")).toHaveLength(2);
  });

  test.each([
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "<iframe src=https://evil.example></iframe>",
    '<form action="https://evil.example"><input name=password type=password><button>Log in</button></form>',
    "<style>*{display:none}</style>",
    '<svg onload="alert(1)"><a xlink:href="javascript:alert(1)">x</a></svg>',
    '<a href="javascript:alert(1)">x</a>',
    "[x](javascript:alert(1))",
    '<div style="position:fixed;inset:0">x</div>',
    '<base href="https://evil.example">',
    '<object data="x"></object><embed src="x">',
    '<meta http-equiv="refresh" content="0;url=https://evil.example">',
  ])("%s does nothing", (text) => {
    const page = drawn(text);
    const bad =
      "script, iframe, form, style, svg, object, embed, base, meta, button, input, [style], [href], [src], [onerror], [onload]";
    expect(page.querySelectorAll(bad)).toHaveLength(0);
    expect(page.innerHTML).not.toMatch(/javascript:/i);
  });

  test("nothing is loaded from elsewhere, and links lead nowhere by themselves", () => {
    const page = drawn("![logo](https://evil.example/pixel.png) [docs](docs/a.md)");
    expect(page.querySelector("img")?.getAttribute("src")).toBeNull();
    expect(page.querySelector("img")?.dataset.src).toBe("https://evil.example/pixel.png");
    expect(page.querySelector("a")?.hasAttribute("href")).toBe(false);
    expect(page.querySelector("a")?.dataset.href).toBe("docs/a.md");
  });
});
