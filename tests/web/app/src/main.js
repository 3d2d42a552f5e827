// What the browser shows, replaced in place when `text.js` changes.
import { text } from "./text.js";

const show = (text) => (document.querySelector("#text").textContent = text);
show(text);
window.loadedAt = Math.random();
import.meta.hot.accept("./text.js", (changed) => show(changed.text));
