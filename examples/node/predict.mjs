// Runs a folder of `florence2 export --to onnx` on images, offline, and prints one line of JSON for each image and task.
//
//   node predict.mjs FOLDER [--task caption] [--task od] IMAGE...
//
// Captions and boxes equal those of `florence2 predict --num_beams 1` in float32.

import path from 'node:path';
import sharp from 'sharp';
import { AutoProcessor, env, Florence2ForConditionalGeneration, RawImage } from '@huggingface/transformers';
import { resizeBicubic } from '../browser/resize.mjs';

const { folder, tasks, images } = readArguments(process.argv.slice(2));

// Nothing is downloaded: a folder is a model id below `localModelPath`.
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder));
const id = path.basename(path.resolve(folder));
const model = await Florence2ForConditionalGeneration.from_pretrained(id);
const processor = await AutoProcessor.from_pretrained(id);
const { height, width } = processor.image_processor.size;

for (const file of images) {
  const { image, size } = await readImage(file);
  for (const task of tasks) {
    const token = `<${task.toUpperCase()}>`;
    const inputs = await processor(image, processor.construct_prompts(token));
    const ids = await model.generate({
      ...inputs,
      num_beams: 1, // transformers.js has no beam search
      max_new_tokens: 256,
      // Boxes and tables repeat themselves; only captions forbid repeated n-grams.
      ...(isText(token) ? {} : { no_repeat_ngram_size: 0 }),
    });
    const [output] = processor.batch_decode(ids, { skip_special_tokens: false });
    const text = output.replace(/<\/?s>|<pad>/g, '').trim();
    const answer = processor.post_process_generation(text, token, size)[token];
    console.log(JSON.stringify({ file_name: path.basename(file), task, text, answer }));
  }
}

function readArguments(words) {
  const [folder, ...rest] = words;
  const tasks = [];
  const images = [];
  while (rest.length) {
    const word = rest.shift();
    if (word === '--task') tasks.push(rest.shift());
    else images.push(word);
  }
  if (!folder || !images.length) {
    console.error('usage: node predict.mjs FOLDER [--task caption] [--task od] IMAGE...');
    process.exit(2);
  }
  return { folder, tasks: tasks.length ? tasks : ['caption'], images };
}

function isText(token) {
  return (processor.tasks_answer_post_processing_type.get(token) ?? 'pure_text') === 'pure_text';
}

async function readImage(file) {
  const upright = sharp(file).rotate().flatten({ background: 'white' }).toColourspace('srgb').removeAlpha();
  const { data, info } = await upright.raw().toBuffer({ resolveWithObject: true });
  const rgb = resizeBicubic(data, info.width, info.height, width, height);
  return { image: new RawImage(rgb, width, height, 3), size: [info.width, info.height] };
}
