/** The ask view: images, a task, and the answer of the server drawn on the image. */
import { AnswerPanel } from "./answer_panel.js";
import { takeFiles } from "./file_drop.js";
import { makeStage } from "./overlay.js";
import { RegionInput } from "./region_input.js";

const find = (id) => document.getElementById(id);
/** @type {{tasks: {name: string, input: string, output: string}[], models: {name: string, task: string}[]}} */
let server = { tasks: [], models: [] };
/** @typedef {{file: File, url: string, rows: Map<string, any>}} Item */
/** @type {Item[]} */
const items = [];
let current = -1;
const NO_ANSWER = "The server does not answer.";
const TASK_TITLES = { od: "object detection (od)", ocr: "text (ocr)", ocr_with_region: "text with region (ocr)" };

const stage = makeStage("The image with the answer drawn on it");
const panel = new AnswerPanel(stage);
const region = new RegionInput(stage, find("input"));

async function start() {
  find("key").addEventListener("change", loadTasks);
  find("model").addEventListener("change", showModel);
  find("task").addEventListener("change", showTask);
  find("run").addEventListener("click", () => run(true));
  find("input").addEventListener("keydown", (event) => event.key === "Enter" && run(true));
  find("input").addEventListener("input", clearError);
  takeFiles(find("drop"), find("choose"), find("files"), addFiles);
  find("view").append(stage.stage);
  stage.stage.hidden = true;
  stage.image.addEventListener("load", () => panel.draw());
  stage.image.addEventListener("error", () => {
    stage.stage.hidden = true;
    find("unshown").textContent = `This browser cannot show ${items[current].file.name}.`;
  });
  await loadTasks();
}

function clearError() {
  find("error").textContent = "";
}

/** @returns {Record<string, string>} */
function headers() {
  const key = find("key").value;
  return key ? { authorization: `Bearer ${key}` } : {};
}

/** Send a request with the key. @param {string} path @param {RequestInit} options */
async function request(path, options) {
  try {
    return await fetch(path, { ...options, headers: headers() });
  } catch {
    throw new Error(NO_ANSWER);
  }
}

async function loadTasks() {
  const response = await request("/page/tasks", {}).catch(() => null);
  if (!response) {
    find("error").textContent = NO_ANSWER;
    return;
  }
  find("key-field").hidden = response.status !== 401 && !find("key").value;
  find("error").textContent = response.status === 401 ? "The server needs its API key." : "";
  if (!response.ok) return;
  server = await response.json();
  find("model").replaceChildren(...server.models.map((model) => new Option(model.name, model.name)));
  find("model-field").hidden = server.models.length < 2;
  find("model-name").textContent = server.models.length === 1 ? server.models[0].name : "";
  showModel();
}

/** List the tasks, and choose the one that the model was trained on, which may be a prompt of its own. */
function showModel() {
  const own = server.models.find((model) => model.name === find("model").value)?.task ?? "";
  const options = server.tasks.map((each) => new Option(TASK_TITLES[each.name] ?? each.name.replaceAll("_", " "), each.name));
  const isPrompt = own && !server.tasks.some((each) => each.name === own);
  find("task").replaceChildren(...(isPrompt ? [new Option(own, own)] : []), ...options);
  if (own) find("task").value = own;
  showTask();
}

function task() {
  const name = find("task").value;
  if (!name) return server.tasks[0];
  return server.tasks.find((each) => each.name === name) ?? { name, input: "nothing", output: "text" };
}

function showTask() {
  const kind = task()?.input ?? "nothing";
  find("input-field").hidden = kind === "nothing";
  find("input-label").textContent =
    kind === "region" ? "Region in pixels: x1,y1,x2,y2; or drag one on the image" : "Words, such as a phrase or a class";
  find("input").value = "";
  region.enable(kind === "region");
  show();
  if (kind === "nothing") run(false);
}

/** @param {File[]} files @param {File[]} others which are no images */
function addFiles(files, others) {
  clearError();
  if (!files.length) {
    if (others.length) find("error").textContent = `${others[0].name} is not an image.`;
    return;
  }
  for (const file of files) items.push({ file, url: URL.createObjectURL(file), rows: new Map() });
  find("drop").classList.remove("empty");
  current = items.length - files.length;
  showStrip();
  show();
  run(false);
}

function showStrip() {
  find("strip").hidden = items.length < 2;
  find("strip").replaceChildren(
    ...items.map((item, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(index === current));
      button.setAttribute("aria-label", item.file.name);
      const image = document.createElement("img");
      image.src = item.url;
      image.alt = "";
      image.addEventListener("error", () => image.replaceWith(item.file.name));
      button.append(image);
      button.addEventListener("click", () => {
        current = index;
        showStrip();
        find("strip").children[index].focus();
        show();
        run(false);
      });
      return button;
    }),
  );
}

function requestKey() {
  return [find("model").value, find("task").value, find("input").value].join("\n");
}

function show() {
  const item = items[current];
  stage.stage.hidden = !item;
  if (!item) return;
  if (stage.image.src !== item.url) {
    find("unshown").textContent = "";
    stage.image.src = item.url;
  } else stage.stage.hidden = Boolean(find("unshown").textContent);
  const row = item.rows.get(requestKey()) ?? null;
  find("status").textContent = row ? `${row.milliseconds} ms, ${row.num_tokens ?? 0} tokens` : "";
  panel.show(row);
}

/** Ask the server about the current image, unless it has answered before. @param {boolean} isExplicit */
async function run(isExplicit) {
  const item = items[current];
  clearError();
  if (!item || !task()) {
    if (isExplicit) find("error").textContent = "Drop an image first.";
    return;
  }
  const key = requestKey();
  if (item.rows.has(key) && !isExplicit) return;
  if (task().input !== "nothing" && !find("input").value.trim()) {
    const need = task().input === "region" ? "a region: drag one on the image" : "words";
    if (isExplicit) find("error").textContent = `This task needs ${need}.`;
    return;
  }
  find("status").textContent = "running";
  const start = performance.now();
  try {
    const row = await predict(item);
    row.milliseconds = Math.round(performance.now() - start);
    item.rows.set(key, row);
  } catch (error) {
    find("error").textContent = error.message;
  }
  if (items[current] === item) show();
}

/** @param {Item} item */
async function predict(item) {
  const form = new FormData();
  form.append("image", item.file, item.file.name);
  form.append("task", find("task").value);
  if (find("model").value) form.append("model", find("model").value);
  if (task().input !== "nothing") form.append("task_input", find("input").value);
  const response = await request("/v1/predict", { method: "POST", body: form });
  const body = await response.json().catch(() => ({})); // a proxy may answer in its own words
  if (!response.ok) throw new Error(body.error?.message ?? `The server answered with status ${response.status}.`);
  const [row] = body.predictions;
  if (row.error) throw new Error(row.error);
  return row;
}

start();
