// Sends one file with tus-js-client: node tus_upload.js ENDPOINT FILE API_KEY. Prints the URL of the
// upload; a failure that outlives its retries is an error and ends with exit code 1.

const fs = require('node:fs');
const path = require('node:path');
const tus = require('tus-js-client');

const [endpoint, file, apiKey] = process.argv.slice(2);

const upload = new tus.Upload(fs.createReadStream(file), {
  endpoint,
  headers: { 'x-api-key': apiKey },
  metadata: { filename: path.basename(file), filetype: 'image/jpeg' },
  uploadSize: fs.statSync(file).size,
  chunkSize: 1_000_000,
  retryDelays: Array(20).fill(10),
  onError: (error) => {
    console.error(String(error));
    process.exitCode = 1;
  },
  onSuccess: () => console.log(JSON.stringify({ url: upload.url })),
});
upload.start();
