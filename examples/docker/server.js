// An ordinary web app, which knows nothing of rsup.
const http = require('node:http');

const server = http.createServer((request, response) => {
  if (request.url === '/readiness' || request.url === '/liveness') return response.end('ok\n');
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify({ pid: process.pid, uid: process.getuid() }) + '\n');
});

server.listen(process.env.PORT, '0.0.0.0', () => console.log(`listening on ${process.env.PORT}`));
process.on('SIGTERM', () => server.close(() => process.exit(0)));
