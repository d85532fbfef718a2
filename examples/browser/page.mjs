// Loads the model in `models/`, and shows what it says about an image. Everything comes from the server of this page.

import { AutoProcessor, env, Florence2ForConditionalGeneration, RawImage } from '@huggingface/transformers';
import { resizeBicubic } from './resize.mjs';

const COLORS = ['#e6194b', '#3cb44b', '#4363d8', '#f58231', '#911eb4', '#008080', '#9a6324', '#800000'];
const element = (id) => document.getElementById(id);
const id = new URLSearchParams(location.search).get('model') ?? 'florence2';

env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = new URL('./models/', location.href).pathname;
env.backends.onnx.wasm.wasmPaths = new URL('./node_modules/onnxruntime-web/dist/', location.href).href;
env.backends.onnx.wasm.numThreads = 1; // more need the headers of a cross-origin isolated page

const start = performance.now();
const processor = await AutoProcessor.from_pretrained(id);
const model = await Florence2ForConditionalGeneration.from_pretrained(id, { device: 'wasm' });
const { height, width } = processor.image_processor.size;
element('status').textContent = `model loaded in ${seconds(start)}`;
element('run').disabled = false;

element('form').addEventListener('submit', async (event) => {
  event.preventDefault();
  element('run').disabled = true;
  element('answer').textContent = '';
  try {
    await run(element('image').files[0], element('task').value);
  } catch (error) {
    element('status').textContent = `failed: ${error.message}`;
  }
  element('run').disabled = false;
});

async function run(file, task) {
  const start = performance.now();
  const pixels = await drawImage(file);
  const rgb = resizeBicubic(withoutAlpha(pixels), pixels.width, pixels.height, width, height);
  const inputs = await processor(new RawImage(rgb, width, height, 3), processor.construct_prompts(task));
  const isText = (processor.tasks_answer_post_processing_type.get(task) ?? 'pure_text') === 'pure_text';
  const ids = await model.generate({
    ...inputs,
    num_beams: 1, // transformers.js has no beam search
    max_new_tokens: 256,
    // Boxes and tables repeat themselves; only captions forbid repeated n-grams.
    ...(isText ? {} : { no_repeat_ngram_size: 0 }),
  });
  const [output] = processor.batch_decode(ids, { skip_special_tokens: false });
  const text = output.replaceAll(/<\/?s>|<pad>/g, '').trim();
  const answer = processor.post_process_generation(text, task, [pixels.width, pixels.height])[task];
  element('answer').textContent = isText ? answer : answer.labels.join(', ');
  if (!isText) drawOutlines(answer.labels, answer.quad_boxes ?? answer.bboxes.map(cornersOf));
  element('status').textContent = `answered in ${seconds(start)}`;
}

// Shows an image upright, transparency on white, and returns its pixels.
async function drawImage(file) {
  const bitmap = await createImageBitmap(file, { imageOrientation: 'from-image', colorSpaceConversion: 'none' });
  const canvas = element('canvas');
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.fillStyle = 'white';
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

function withoutAlpha({ data, width, height }) {
  const rgb = new Uint8ClampedArray(width * height * 3);
  for (let pixel = 0; pixel < width * height; ++pixel) {
    rgb.set(data.subarray(pixel * 4, pixel * 4 + 3), pixel * 3);
  }
  return rgb;
}

function cornersOf([left, top, right, bottom]) {
  return [left, top, right, top, right, bottom, left, bottom];
}

function drawOutlines(labels, outlines) {
  const context = element('canvas').getContext('2d');
  context.lineWidth = Math.max(2, context.canvas.width / 200);
  context.font = `${Math.max(12, context.canvas.width / 28)}px system-ui, sans-serif`;
  outlines.forEach((corners, index) => {
    context.strokeStyle = context.fillStyle = COLORS[index % COLORS.length];
    context.beginPath();
    for (let corner = 0; corner < corners.length; corner += 2) context.lineTo(corners[corner], corners[corner + 1]);
    context.closePath();
    context.stroke();
    context.fillText(labels[index], corners[0] + 4, Math.max(corners[1] - 5, 14));
  });
}

function seconds(start) {
  return `${((performance.now() - start) / 1000).toFixed(1)} s`;
}
