/** The API page: the operations of the server from its OpenAPI description, each with a request that can be sent. */

/** @typedef {{openapi: string, info: Record<string, string>, paths: Record<string, any>, components?: any}} Description */

const find = (id) => document.getElementById(id);
const JSON_TYPE = "application/json";
const PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=";
const MESSAGE = { role: "user", content: [{ type: "text", text: "Describe this image" }, { type: "image_url", image_url: { url: PIXEL } }] };
/** Bodies that the server answers, for the operations that take one. */
const EXAMPLES = {
  "/v1/chat/completions": { messages: [MESSAGE] },
  "/v1/responses": { input: [{ role: "user", content: [{ type: "input_image", image_url: PIXEL }] }] },
  "/v1/predict": { image: PIXEL, task: ["caption", "od"] },
  "/api/generate": { prompt: "Describe this image", images: [PIXEL.split(",")[1]], stream: false },
  "/api/chat": { messages: [{ role: "user", content: "Describe this image", images: [PIXEL.split(",")[1]] }], stream: false },
  "/api/show": { model: "" },
};

/** @param {string} name @param {string} text @param {string} [className] */
function make(name, text, className = "") {
  const element = document.createElement(name);
  element.textContent = text;
  element.className = className;
  return element;
}

/** Return a schema without references. @param {any} schema @param {Description} description */
function resolve(schema, description) {
  const name = schema?.$ref?.split("/").pop();
  return name ? description.components.schemas[name] : schema;
}

/** @param {any} schema */
function typeOf(schema) {
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.type === "array") return `list of ${typeOf(schema.items ?? {})}`;
  return schema.type ?? schema.$ref?.split("/").pop() ?? "any";
}

/** @param {string} kind @param {any} schema */
function fieldTable(kind, schema) {
  const table = document.createElement("table");
  table.append(make("caption", kind));
  for (const [name, field] of Object.entries(schema.properties ?? {})) {
    const row = table.insertRow();
    row.append(make("td", name, "name"), make("td", typeOf(field)), make("td", schema.required?.includes(name) ? "required" : ""));
  }
  return table;
}

/** @param {string} method @param {string} path @param {string} body */
function curlLine(method, path, body) {
  const data = body ? ` \\\n  -H 'content-type: application/json' \\\n  -d '${body.replaceAll("'", "'\\''")}'` : "";
  return `curl ${location.origin}${path}${method === "post" ? data || " -X POST" : ""}`;
}

/** Send a request, and show its status and answer. @param {string} method @param {string} path @param {string} body @param {HTMLElement} output */
async function send(method, path, body, output) {
  const headers = { ...(body ? { "content-type": JSON_TYPE } : {}) };
  if (find("key").value) headers.authorization = `Bearer ${find("key").value}`;
  output.hidden = false;
  output.textContent = "...";
  try {
    const response = await fetch(path, { method: method.toUpperCase(), headers, body: body || undefined });
    const text = await response.text();
    const isJson = response.headers.get("content-type")?.startsWith(JSON_TYPE);
    output.textContent = `${response.status}\n${isJson ? JSON.stringify(JSON.parse(text), null, 2) : text}`;
  } catch (error) {
    output.textContent = String(error);
  }
}

/** @param {string} path @param {string} method @param {any} operation @param {Description} description */
function showOperation(path, method, operation, description) {
  const details = document.createElement("details");
  const summary = make("summary", "");
  summary.append(make("b", method.toUpperCase()), make("code", path), make("span", operation.summary ?? "", "quiet"));
  details.append(summary, make("p", operation.description ?? ""));
  for (const [kind, content] of Object.entries(operation.requestBody?.content ?? {})) {
    details.append(fieldTable(kind, resolve(content.schema, description)));
  }
  const isPost = method === "post";
  const example = isPost ? JSON.stringify(EXAMPLES[path] ?? {}, null, 1) : "";
  const address = Object.assign(document.createElement("input"), { value: path, hidden: !path.includes("{") });
  const body = Object.assign(document.createElement("textarea"), { value: example, hidden: !isPost, spellcheck: false, rows: 8 });
  body.setAttribute("aria-label", "Body of the request");
  address.setAttribute("aria-label", "Path of the request");
  const curl = make("pre", curlLine(method, path, example));
  body.addEventListener("input", () => (curl.textContent = curlLine(method, path, body.value)));
  const output = Object.assign(make("pre", "", "answer"), { hidden: true, tabIndex: 0 });
  const button = Object.assign(make("button", "Send"), { type: "button" });
  button.addEventListener("click", () => send(method, address.value, body.value, output));
  details.append(address, body, button, output, curl);
  return details;
}

/** @param {Description} description */
function show(description) {
  find("title").textContent = `${description.info.title} ${description.info.version} API`;
  find("summary").textContent = description.info.summary ?? "";
  const groups = new Map();
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = operation.tags?.[0] ?? "";
      if (!groups.has(tag)) groups.set(tag, []);
      groups.get(tag).push(showOperation(path, method, operation, description));
    }
  }
  for (const [tag, operations] of groups) find("operations").append(make("h2", tag), ...operations);
}

try {
  show(await (await fetch("/openapi.json")).json());
} catch (error) {
  find("error").textContent = String(error);
}
