// An Immich that tells which requests Node's own HTTP parser, at its defaults, has seen.
//
// stdin:  a line `quiet`: close what is idle, and say so once no connection is left.
// stdout: one JSON object a line: {"port"} once, then {"seen": request}, {"refused": error code,
//         "bytes": what was refused} or {"quiet": true}. Bytes are written as Latin-1.
//         A request is told at its end, or when it is known that it will have none.
'use strict';

const { createHash } = require('node:crypto');
const http = require('node:http');
const { createInterface } = require('node:readline');

const QUIET_POLL_MS = 5;
const FILE_PART = 'name="assetData"';
const BLANK_LINE = '\r\n\r\n';

let serials = 0;

function tell(line) {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

function headOf(request) {
  const { method, url: target, rawHeaders: headers } = request;
  return { serial: ++serials, method, target, headers };
}

// The content of the last part of a form: its boundary is made by chance, what is in it is not.
function fileIn(form, contentType) {
  const boundary = contentType.split('boundary=')[1];
  const start = form.indexOf(BLANK_LINE, form.indexOf(FILE_PART)) + BLANK_LINE.length;
  return form.subarray(start, form.lastIndexOf(`\r\n--${boundary}--`));
}

function answer(request, response, serial) {
  const created = request.method === 'POST' && request.url.startsWith('/api/assets');
  const text = created ? '{"id":"an-asset","status":"created"}' : 'seen';
  response.writeHead(created ? 201 : 200, {
    'Content-Type': created ? 'application/json' : 'text/plain',
    'Content-Length': text.length,
    'X-Seen': serial,
  });
  response.end(text);
}

function onRequest(request, response) {
  const head = headOf(request);
  const pieces = [];
  request.on('data', (piece) => pieces.push(piece));
  request.on('error', () => {}); // told by `close`
  request.on('close', () => request.complete || tell({ seen: { ...head, complete: false } }));
  request.on('end', () => {
    const type = request.headers['content-type'] ?? '';
    let body = Buffer.concat(pieces);
    if (head.target.startsWith('/api/assets') && type.startsWith('multipart/form-data')) {
      body = fileIn(body, type);
    }
    const digest = createHash('sha256').update(body).digest('hex');
    tell({ seen: { ...head, complete: true, length: body.length, digest } });
    answer(request, response, head.serial);
  });
}

function onExpectation(request, response) {
  const head = headOf(request);
  tell({ seen: { ...head, complete: false } }); // of its body nothing will be read
  response.writeHead(417, { 'Content-Length': 0, 'X-Seen': head.serial });
  response.end();
}

function onUpgrade(request, socket) {
  const head = headOf(request);
  const digest = createHash('sha256').digest('hex');
  tell({ seen: { ...head, complete: true, length: 0, digest } });
  socket.on('error', () => {});
  socket.on('end', () => socket.end());
  socket.resume();
  if (request.headers['sec-websocket-key'] === undefined) {
    const refusal = ['HTTP/1.1 400 Bad Request', 'Connection: close', 'Content-Length: 0'];
    socket.end([...refusal, `X-Seen: ${head.serial}`, '', ''].join('\r\n'));
    return;
  }
  const consent = ['HTTP/1.1 101 Switching Protocols', 'Upgrade: websocket', 'Connection: Upgrade'];
  socket.write([...consent, `X-Seen: ${head.serial}`, '', ''].join('\r\n'));
}

// What Node itself does when nobody listens for the error, and a word about it.
function onClientError(error, socket) {
  if (error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy();
    return;
  }
  tell({ refused: error.code, bytes: error.rawPacket?.toString('latin1') ?? '' });
  const status =
    error.code === 'HPE_HEADER_OVERFLOW' ? '431 Request Header Fields Too Large' : '400 Bad Request';
  socket.end(`HTTP/1.1 ${status}\r\nConnection: close\r\n\r\n`);
}

const server = http.createServer(onRequest);
server.on('checkExpectation', onExpectation);
server.on('upgrade', onUpgrade);
server.on('clientError', onClientError);

function waitForQuiet() {
  server.closeIdleConnections();
  server.getConnections((_, open) => {
    if (open === 0) {
      tell({ quiet: true });
    } else {
      setTimeout(waitForQuiet, QUIET_POLL_MS);
    }
  });
}

createInterface({ input: process.stdin })
  .on('line', waitForQuiet)
  .on('close', () => process.exit());
server.listen(0, '127.0.0.1', () => tell({ port: server.address().port }));
