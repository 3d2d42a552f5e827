// Looks at a preview in a real browser: what it shows, how it changes, what it downloads, what it remembers.
// Environment: APP_URL and OTHER_URL (previews of two sandboxes), TEXT_URL (the API's route of src/text.js) and TOKEN,
// BIG_SHA256 and BIG_BYTES of /big.bin, PROFILE (a fresh folder).
import { chromium } from "playwright-core";

const { APP_URL, OTHER_URL, TEXT_URL, TOKEN, BIG_SHA256, BIG_BYTES, PROFILE } = process.env;
const PATIENCE_MS = 240_000;

const check = (holds, what) => {
  if (!holds) throw new Error(what);
};

const context = await chromium.launchPersistentContext(PROFILE, {
  executablePath: "/usr/bin/chromium",
  headless: true,
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
try {
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  const said = [];
  page.on("console", (message) => said.push(message.text()));
  page.on("pageerror", (error) => said.push(String(error)));

  const began = Date.now();
  const connects = (message) => message.text().includes("[vite] connected");
  const connected = page.waitForEvent("console", { predicate: connects, timeout: PATIENCE_MS });
  connected.catch(() => console.error(said.join("\n")));
  await page.goto(APP_URL, { timeout: PATIENCE_MS });
  await page.waitForFunction(() => document.querySelector("#text")?.textContent === "before");
  await connected;
  console.log(`rendered and connected after ${Date.now() - began} ms`);

  const loadedAt = await page.evaluate(() => window.loadedAt);
  const edited = Date.now();
  const answer = await fetch(TEXT_URL, {
    method: "PUT",
    headers: { authorization: `Bearer ${TOKEN}`, "content-type": "application/octet-stream" },
    body: 'export const text = "after";\n',
  });
  check(answer.ok, `the edit was answered with ${answer.status}`);
  await page.waitForFunction(() => document.querySelector("#text").textContent === "after");
  check((await page.evaluate(() => window.loadedAt)) === loadedAt, "the page was loaded again");
  console.log(`an edit arrived without a reload after ${Date.now() - edited} ms`);

  const fetched = await page.evaluate(async () => {
    const began = performance.now();
    const bytes = await (await fetch("/big.bin")).arrayBuffer();
    const took = performance.now() - began;
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return { length: bytes.byteLength, took, hash: [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("") };
  });
  check(fetched.length === Number(BIG_BYTES) && fetched.hash === BIG_SHA256, `the download differs: ${JSON.stringify(fetched)}`);
  console.log(`${fetched.length} bytes were equal, ${(fetched.length / 1048.576 / fetched.took).toFixed(1)} MiB/s`);

  const gaps = await page.evaluate(
    () =>
      new Promise((resolve, reject) => {
        const times = [];
        const events = new EventSource("/ticks");
        events.onmessage = (event) => {
          times.push(performance.now());
          if (event.data === "1") {
            events.close();
            resolve(times.slice(1).map((time, at) => Math.round(time - times[at])));
          }
        };
        events.onerror = () => reject(new Error("the event stream broke"));
      }),
  );
  check(gaps.length === 5 && gaps.every((gap) => gap > 150 && gap < 1500), `ticks came after ${gaps} ms`);
  console.log(`ticks of 500 ms came after ${gaps} ms`);

  await page.evaluate(() => (document.cookie = "secret=of-one; path=/"));
  const other = await context.newPage();
  await other.goto(OTHER_URL, { timeout: PATIENCE_MS });
  const foreign = await other.evaluate(() => document.cookie);
  check(foreign === "", `the other preview sees ${foreign}`);
  await other.evaluate(() => (document.cookie = "secret=of-the-other; path=/"));
  check((await page.evaluate(() => document.cookie)) === "secret=of-one", "the cookies meet");
  console.log("two previews do not see each other's cookies");
} finally {
  await context.close();
}
