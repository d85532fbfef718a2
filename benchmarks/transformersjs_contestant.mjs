// transformers.js as a contestant of `throughput`, with the interface of contestants.py: a line of JSON with a job from
// stdin, one line of reply to stdout. It has no beam search and opens images itself.
//
//   node transformersjs_contestant.mjs '{"exports": "FOLDER", "target": "onnx", "dtype": "float32", "num_threads": 2}'

import fs from 'node:fs';
import readline from 'node:readline';
import { AutoProcessor, env, Florence2ForConditionalGeneration, RawImage } from '@huggingface/transformers';

const DTYPES = { float32: 'fp32', int8: 'q8' };
const TASK = '<CAPTION>';
const config = JSON.parse(process.argv[2]);

// Nothing is downloaded: a folder is a model id below `localModelPath`.
env.allowRemoteModels = false;
env.localModelPath = config.exports;
let size, model, processor;

for await (const line of readline.createInterface({ input: process.stdin })) {
  const job = JSON.parse(line);
  if (job.model_size !== size) await load(job.model_size);
  const before = process.cpuUsage();
  const start = performance.now();
  const output = fs.createWriteStream(job.output);
  for (const [index, file] of job.images.entries()) {
    output.write(`${JSON.stringify({ file_name: file, text: await caption(file, job.lengths[index]) })}\n`);
  }
  await new Promise((resolve) => output.end(resolve));
  const seconds = (performance.now() - start) / 1000;
  const { user, system } = process.cpuUsage(before);
  const peak = process.resourceUsage().maxRSS / 1024;
  console.log(JSON.stringify({ seconds, cpu_seconds: (user + system) / 1e6, gpu_peak_mib: 0, peak_mib: peak }));
}

async function load(newSize) {
  size = newSize;
  await model?.dispose();
  const id = `${size}-${config.target}-${config.dtype}`;
  const session_options = { intraOpNumThreads: config.num_threads };
  model = await Florence2ForConditionalGeneration.from_pretrained(id, { dtype: DTYPES[config.dtype], session_options });
  processor = await AutoProcessor.from_pretrained(id);
}

// A length of 40 is <s>, 40 tokens and </s>.
async function caption(file, length) {
  const inputs = await processor(await RawImage.read(file), processor.construct_prompts(TASK));
  const limits = length ? { min_new_tokens: length + 1, max_new_tokens: length + 2 } : { max_new_tokens: 256 };
  const ids = await model.generate({ ...inputs, num_beams: 1, ...limits });
  if (length && ids.dims[1] !== length + 3) throw new Error(`${ids.dims[1]} ids instead of ${length + 3}`);
  return processor.batch_decode(ids, { skip_special_tokens: true })[0];
}
