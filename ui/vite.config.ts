/// <reference types="vitest/config" />
import { svelte, vitePreprocess } from "@sveltejs/vite-plugin-svelte";
import { svelteTesting } from "@testing-library/svelte/vite";
import { defineConfig } from "vite";

// In development the page comes from here and the API from a server of its own. The server answers only to its own name
// and to known pages, so a passed-on request says what one of the server's own page would.
const api = process.env.COVE_API ?? "http://127.0.0.1:7333";

export default defineConfig({
  root: import.meta.dirname,
  plugins: [svelte({ preprocess: vitePreprocess(), configFile: false }), svelteTesting()],
  server: {
    // `tauri dev` expects the page at this address (src-tauri/tauri.conf.json); others choose one with `--port`.
    host: "127.0.0.1",
    port: 5173,
    strictPort: true,
    proxy: { "/api": { target: api, changeOrigin: true, ws: true, headers: { origin: api } } },
  },
  build: { outDir: "dist", emptyOutDir: true, target: "es2022" },
  test: {
    environment: "jsdom",
    setupFiles: ["src/test-setup.ts"],
    include: ["src/**/*.test.ts"],
    restoreMocks: true,
    // One page for all files of a thread: making a page for each takes far longer than all tests. Tests clean up.
    pool: "threads",
    isolate: false,
  },
});
