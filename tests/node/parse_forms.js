// Parses multipart forms with the two parsers that stand in Immich's upload path.
//
// stdin:  frames of [u32 length][JSON header][u32 length][body], big-endian; the header is
//         {"contentType": text, "slice": bytes handed to the parsers at a time}.
// stdout: one JSON line a form, {"busboy": parse, "multer": parse}; a parse is
//         {"fields": [[name, value], ...], "files": [{name, filename, mimeType, size, sha256}],
//         "error": null | text}. What a parser saw before an error stays in its parse.
'use strict';

const { createHash } = require('node:crypto');
const { once } = require('node:events');
const { Readable } = require('node:stream');
const createBusboy = require('busboy');
const multer = require('multer');

function sourceOf(body, slice) {
  const pieces = [];
  for (let start = 0; start < body.length; start += slice) {
    pieces.push(body.subarray(start, start + slice));
  }
  // An object-mode source hands over each piece by itself, as a socket would.
  return Readable.from(pieces, { objectMode: true });
}

function digestInto(file, stream, done) {
  const hash = createHash('sha256');
  let size = 0;
  stream.on('data', (chunk) => {
    hash.update(chunk);
    size += chunk.length;
  });
  stream.on('error', done);
  stream.on('end', () => {
    Object.assign(file, { size, sha256: hash.digest('hex') });
    done(null);
  });
}

function parseWithBusboy(contentType, body, slice) {
  const parse = { fields: [], files: [], error: null };
  return new Promise((resolve) => {
    const fail = (error) => {
      parse.error ??= error.message;
      resolve(parse);
    };
    let parser;
    try {
      parser = createBusboy({ headers: { 'content-type': contentType }, defParamCharset: 'utf8' });
    } catch (error) {
      fail(error);
      return;
    }
    parser.on('field', (name, value, { nameTruncated, valueTruncated }) => {
      // busboy itself only cuts; that a cut refuses the form is multer's rule.
      if (nameTruncated || valueTruncated) {
        parse.error ??= `Field ${nameTruncated ? 'name' : 'value'} too long`;
      }
      parse.fields.push([name ?? null, value]);
    });
    parser.on('file', (name, stream, { filename, mimeType }) => {
      const file = { name: name ?? null, filename: filename ?? null, mimeType };
      parse.files.push(file);
      digestInto(file, stream, (error) => error && fail(error));
    });
    parser.on('error', fail);
    parser.on('close', () => resolve(parse));
    sourceOf(body, slice).pipe(parser);
  });
}

// Immich gives multer neither limits nor a charset: busboy's defaults hold (1 MiB a field), and
// file names arrive as Latin-1, which Immich itself turns back into the UTF-8 they were.
const receiveAsset = multer({
  storage: {
    _handleFile(request, file, callback) {
      const stored = {};
      digestInto(stored, file.stream, (error) => callback(error, stored));
    },
    _removeFile(request, file, callback) {
      callback(null);
    },
  },
}).fields([
  { name: 'assetData', maxCount: 1 },
  { name: 'sidecarData', maxCount: 1 },
]);

function utf8(latin1) {
  return Buffer.from(latin1, 'latin1').toString('utf8');
}

function parseWithMulter(contentType, body, slice) {
  return new Promise((resolve) => {
    const request = sourceOf(body, slice);
    request.headers = { 'content-type': contentType, 'content-length': String(body.length) };
    receiveAsset(request, {}, (error) => {
      const fields = Object.entries(request.body ?? {}).flatMap(([name, value]) =>
        [value].flat().map((single) => [utf8(name), single]),
      );
      const files = Object.values(request.files ?? {})
        .flat()
        .map(({ fieldname, originalname, mimetype, size, sha256 }) => ({
          name: utf8(fieldname),
          filename: utf8(originalname),
          mimeType: mimetype,
          size,
          sha256,
        }));
      const refused = request.body === undefined ? 'Not multipart' : null;
      resolve({ fields, files, error: error ? error.message : refused });
    });
  });
}

async function* framesOf(stream) {
  let pending = [];
  let available = 0;
  let wanted = null;
  for await (const chunk of stream) {
    pending.push(chunk);
    available += chunk.length;
    while (available >= (wanted ?? 4)) {
      const joined = Buffer.concat(pending);
      const taken = wanted ?? 4;
      const frame = joined.subarray(0, taken);
      pending = [joined.subarray(taken)];
      available -= taken;
      if (wanted === null) {
        wanted = frame.readUInt32BE(0);
      } else {
        wanted = null;
        yield frame;
      }
    }
  }
}

async function main() {
  let header = null;
  for await (const frame of framesOf(process.stdin)) {
    if (header === null) {
      header = JSON.parse(frame.toString('utf8'));
      continue;
    }
    const { contentType, slice } = header;
    header = null;
    const answer = {
      busboy: await parseWithBusboy(contentType, frame, slice),
      multer: await parseWithMulter(contentType, frame, slice),
    };
    if (!process.stdout.write(`${JSON.stringify(answer)}\n`)) {
      await once(process.stdout, 'drain');
    }
  }
}

main();
