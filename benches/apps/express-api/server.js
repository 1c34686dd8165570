// An Express app as people write them: it knows no supervisor. LISTEN_FD is for the bench's own
// contestant, which runs without any: two processes, each with a socket of the shared port.
const express = require("express");
const app = express();
let ready = false;

app.get("/health", (req, res) => res.json({ status: "healthy", pid: process.pid }));
app.get("/readiness", (req, res) => res.status(ready ? 200 : 503).json({ status: ready ? "ready" : "not ready" }));

const { PORT = 3001, LISTEN_FD, WARM_MS = 0 } = process.env;
const address = LISTEN_FD ? { fd: +LISTEN_FD } : { port: +PORT, host: "127.0.0.1" };
const server = app.listen(address, () =>
  setTimeout(() => {
    ready = true;
    if (process.send) process.send("ready");
  }, +WARM_MS),
);

const stop = () => server.close(() => process.exit(0));
process.on("SIGTERM", stop);
process.on("SIGINT", stop);
