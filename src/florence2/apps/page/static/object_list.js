/** The list of a row's objects: each is selected by its button, named in its field, and moved by arrow keys. */
import { colorOf, formatScore } from "./overlay.js";

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/**
 * Show the objects; the focus stays where it is.
 * @param {HTMLElement} list
 * @param {import("./box_editor.js").BoxEditor} boxes
 * @param {boolean} isLocked
 */
export function showObjects(list, boxes, isLocked) {
  const active = /** @type {HTMLElement} */ (document.activeElement);
  const focus = list.contains(active) ? active.dataset.role : "";
  if (focus === "label" && list.children.length === boxes.shapes.length) return markSelected(list, boxes);
  list.replaceChildren(...boxes.shapes.map((shape, index) => makeItem(shape, index, boxes, isLocked)));
  markSelected(list, boxes);
  if (focus) list.children[Math.max(boxes.selected, 0)]?.querySelector(`[data-role=${focus}]`)?.focus();
}

/** Put the focus on the name of the selected object, such as one that was just drawn. @param {HTMLElement} list @param {import("./box_editor.js").BoxEditor} boxes */
export function focusSelected(list, boxes) {
  const item = list.children[boxes.selected];
  item?.querySelector(boxes.hasLabels ? "[data-role=label]" : "[data-role=select]")?.focus();
}

/** @param {HTMLElement} list @param {import("./box_editor.js").BoxEditor} boxes */
function markSelected(list, boxes) {
  [...list.children].forEach((item, index) => item.classList.toggle("selected", index === boxes.selected));
}

/** @param {import("./edited_shapes.js").EditedShape} shape @param {number} index @param {import("./box_editor.js").BoxEditor} boxes @param {boolean} isLocked */
function makeItem(shape, index, boxes, isLocked) {
  const item = document.createElement("li");
  const swatch = document.createElement("span");
  swatch.className = `swatch k${colorOf(shape.label)}`;
  const select = makeButton(String(index + 1), "select", `Object ${index + 1}: arrow keys move it`);
  select.addEventListener("focus", () => boxes.selected !== index && boxes.select(index));
  select.addEventListener("keydown", (event) => onKey(event, boxes));
  const label = document.createElement("input");
  label.value = shape.label;
  label.dataset.role = "label";
  label.setAttribute("aria-label", `Label of object ${index + 1}`);
  label.hidden = !boxes.hasLabels && !shape.label;
  label.addEventListener("focus", () => boxes.selected !== index && boxes.select(index));
  label.addEventListener("input", () => {
    shape.label = label.value;
    boxes.change(`label ${index}`);
  });
  const score = document.createElement("span");
  score.className = "score";
  score.textContent = formatScore(shape.score);
  const remove = makeButton("Delete", "delete", `Delete object ${index + 1}`);
  remove.addEventListener("click", () => {
    boxes.selected = index;
    boxes.remove();
  });
  for (const each of [select, label, remove]) each.disabled = isLocked;
  item.append(swatch, select, label, score, remove);
  return item;
}

/** @param {string} text @param {string} role @param {string} name */
function makeButton(text, role, name) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  button.dataset.role = role;
  button.setAttribute("aria-label", name);
  return button;
}

/** Move or delete the selected object by keys; on the image, `Delete` removes a pressed corner first. @param {KeyboardEvent} event @param {import("./box_editor.js").BoxEditor} boxes */
export function onKey(event, boxes, isOnImage = false) {
  if (event.key in STEPS) {
    const [dx, dy] = STEPS[event.key].map((step) => step * (event.shiftKey ? 10 : 1));
    boxes.nudge(dx, dy, event.altKey);
  } else if (event.key === "Delete" || event.key === "Backspace") isOnImage ? boxes.removeCornerOrShape() : boxes.remove();
  else if (event.key === "Enter" && boxes.outline && !event.ctrlKey) boxes.closeOutline();
  else if (event.key === "Escape" && (boxes.outline || boxes.isDrawing)) boxes.stopDrawing();
  else return;
  event.preventDefault();
  event.stopPropagation();
}
