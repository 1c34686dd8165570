// An Express app of the usual kind. It knows nothing of rsup.
const express = require("express");

const { PORT = 3000, APP_VERSION = "v1", WARM_MS = 200, NEVER_READY, CRASH_AT_START } = process.env;
const app = express();
let ready = false;
let stopping = false;

const state = (status) => ({ status, pid: process.pid, version: APP_VERSION });
app.get(["/", "/health"], (req, res) => res.json(state("healthy")));
app.get("/liveness", (req, res) => res.json(state("alive")));
app.get("/readiness", (req, res) => {
  const ok = ready && !stopping && NEVER_READY !== "1";
  res.status(ok ? 200 : 503).json(state(ok ? "ready" : "not ready"));
});
app.get("/slow", (req, res) => setTimeout(() => res.json(state("slow")), Number(req.query.ms ?? 1000)));

if (CRASH_AT_START === "1") {
  console.error("express-api: CRASH_AT_START is set: cannot connect to the database");
  process.exit(3);
}
const server = app.listen(Number(PORT), () => {
  console.log(`express-api ${process.pid}: ${APP_VERSION} listening on ${PORT}`);
  setTimeout(() => { ready = true; }, Number(WARM_MS));
});

const stop = (signal) => {
  stopping = true;
  console.log(`express-api ${process.pid}: ${signal}`);
  server.close(() => process.exit(0));
};
process.on("SIGTERM", stop);
process.on("SIGINT", stop);
