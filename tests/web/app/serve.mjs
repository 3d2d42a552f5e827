// The development server through its own interface: with a config file or dependencies to look for it would also start a
// compiler, which takes minutes where the guest's kernel is emulated. One more route: events at a steady pace.
import { createServer } from "vite";

const ticks = {
  name: "ticks",
  configureServer(server) {
    server.middlewares.use("/ticks", (request, response) => {
      response.writeHead(200, { "content-type": "text/event-stream", "x-frame-options": "DENY" });
      let left = 6;
      const timer = setInterval(() => {
        response.write(`data: ${left}\n\n`);
        if (--left === 0) response.end();
      }, 500);
      request.on("close", () => clearInterval(timer));
    });
  },
};

console.log("loaded", process.uptime());
const server = await createServer({
  configFile: false,
  plugins: [ticks],
  optimizeDeps: { noDiscovery: true, include: [] },
  esbuild: false,
  server: { host: "127.0.0.1", port: 5173, strictPort: true },
});
await server.listen();
console.log("listens", process.uptime());
