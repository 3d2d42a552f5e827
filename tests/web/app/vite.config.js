// One more route than a plain dev server: events at a steady pace.
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

export default { plugins: [ticks], server: { host: "127.0.0.1", port: 5173, strictPort: true } };
