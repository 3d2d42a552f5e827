// The JavaScript side of code runs: one process a sandbox, one `vm` context for each context. The lines are those of
// python.py beside it; an interrupt comes as SIGINT, which ends a script that runs (`breakOnSigint`).
"use strict";
const fs = require("fs");
const path = require("path");
const vm = require("vm");
const util = require("util");
const readline = require("readline");

const OUTPUT_BYTES_MAX = 1 << 20;
const TEXT_CHARS_MAX = 256 << 10;
const LINE_BYTES_MAX = 96 << 10;
const CONTEXTS_MAX = 16;
const contexts = new Map();
let current = null;
let stop = null;

function write(answer) {
  let line = JSON.stringify(answer);
  if (Buffer.byteLength(line) > LINE_BYTES_MAX) {
    const file = path.join(__dirname, answer.id + ".out");
    fs.writeFileSync(file, line);
    line = JSON.stringify({ id: answer.id, file });
  }
  for (let rest = Buffer.from(line + "\n"); rest.length > 0; ) {
    try {
      rest = rest.subarray(fs.writeSync(1, rest));
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
    }
  }
}

const cut = (text) => (text.length <= TEXT_CHARS_MAX ? text : text.slice(0, TEXT_CHARS_MAX) + " [cut off]");

function keep(stream, text) {
  const out = current && current.out;
  if (!out) return true;
  const room = OUTPUT_BYTES_MAX - out[stream].length;
  out[stream] += text.slice(0, Math.max(0, room));
  out[stream + "_dropped_bytes"] += Math.max(0, text.length - room);
  return true;
}

function images(value) {
  const bytes = value instanceof Uint8Array || Buffer.isBuffer(value) ? Buffer.from(value) : null;
  if (!bytes) return {};
  if (bytes.subarray(0, 8).toString("latin1") === "\x89PNG\r\n\x1a\n") return { "image/png": bytes.toString("base64") };
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return { "image/jpeg": bytes.toString("base64") };
  return {};
}

function rich(value) {
  return { "text/plain": cut(util.inspect(value)), ...images(value) };
}

function make(request) {
  Object.assign(process.env, request.env || {});
  try {
    process.chdir(request.cwd || "/");
  } catch {}
  const { Console } = require("console");
  const { Writable } = require("stream");
  const to = (name) => new Writable({ decodeStrings: false, write: (chunk, _, done) => (keep(name, String(chunk)), done()) });
  const console = new Console({ stdout: to("stdout"), stderr: to("stderr") });
  const local = require("module").createRequire(path.join(process.cwd(), "cell.js"));
  const given = { console, require: local, process, Buffer, setTimeout, clearTimeout, setInterval, clearInterval };
  Object.assign(given, { setImmediate, clearImmediate, queueMicrotask, URL, URLSearchParams, TextEncoder, TextDecoder });
  Object.assign(given, { AbortController, structuredClone, fetch: globalThis.fetch, performance });
  given.display = (value) => current && current.results.push({ kind: "display", data: rich(value) });
  const context = vm.createContext(given);
  vm.runInContext("globalThis.global = globalThis", context);
  return { context, count: 0 };
}

async function evaluate(space, code) {
  const options = { filename: `<cell ${space.count}>`, breakOnSigint: true };
  let script;
  try {
    script = new vm.Script(code, options);
  } catch (error) {
    if (!/await/.test(code)) throw error;
    // Scripts have no `await` at their top; what such a cell declares is its own.
    script = new vm.Script(`(async () => {\n${code}\n})()`, options);
  }
  const value = script.runInContext(space.context, options);
  if (!value || typeof value.then !== "function") return value;
  const stopped = new Promise((_, reject) => (stop = () => reject(new Error("The code was interrupted"))));
  return Promise.race([value, stopped]);
}

async function run(request) {
  let space = contexts.get(request.context);
  if (!space) {
    if (contexts.size >= CONTEXTS_MAX) return write({ id: request.id, refused: "contexts", max: CONTEXTS_MAX });
    contexts.set(request.context, (space = make(request)));
  }
  const began = Date.now();
  const out = { stdout: "", stderr: "", stdout_dropped_bytes: 0, stderr_dropped_bytes: 0 };
  current = { id: request.id, out, results: [] };
  space.count += 1;
  let code = request.code;
  if (request.code_file) {
    code = fs.readFileSync(request.code_file, "utf8");
    fs.unlinkSync(request.code_file);
  }
  let error = null;
  let shown = null;
  try {
    const value = await evaluate(space, code);
    if (value !== undefined) shown = rich(value);
  } catch (caught) {
    const isError = caught && typeof caught === "object" && "message" in caught;
    const lines = String((isError && caught.stack) || util.inspect(caught)).split("\n");
    const ours = lines.findIndex((line) => line.includes("(node:vm:") || line.includes(__filename));
    const trace = cut(lines.slice(0, ours < 0 ? lines.length : ours).join("\n"));
    const name = isError ? (caught.code === "ERR_SCRIPT_EXECUTION_INTERRUPTED" ? "Interrupted" : caught.name) : "Thrown";
    error = { name, value: cut(isError ? caught.message : util.inspect(caught)), traceback: trace + "\n" };
    keep("stderr", trace + "\n");
  }
  stop = null;
  const results = current.results.concat(shown ? [{ kind: "result", data: shown }] : []).slice(0, 64);
  current = null;
  const result = shown ? shown["text/plain"] : null;
  const answer = { id: request.id, ok: !error, result, results, error, execution_count: space.count };
  write({ ...answer, duration_ms: Date.now() - began, ...out });
}

function handle(request) {
  if (request.op === "run") {
    if (current) return write({ id: request.id, refused: "busy" });
    return run(request);
  }
  if (request.op === "contexts") return write({ id: request.id, contexts: [...contexts.keys()] });
  if (request.op === "reset") {
    const gone = [...contexts.keys()].filter((name) => request.context == null || name === request.context);
    gone.forEach((name) => contexts.delete(name));
    return write({ id: request.id, reset: gone });
  }
}

// Not while a script runs: then it is the script that is ended.
process.on("SIGINT", () => stop && stop());
process.on("uncaughtException", (error) => keep("stderr", String((error && error.stack) || error) + "\n"));
process.on("unhandledRejection", (error) => keep("stderr", String((error && error.stack) || error) + "\n"));
process.stdout.write = (chunk) => keep("stdout", String(chunk));
process.stderr.write = (chunk) => keep("stderr", String(chunk));
readline.createInterface({ input: process.stdin }).on("line", (line) => {
  try {
    handle(JSON.parse(line));
  } catch {}
});
write({ ready: true });
