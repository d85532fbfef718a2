/** The grid of rows: only the cells in sight exist, whatever the number of rows. */
import { imageAddress, scoreOf, wordsOf } from "./dataset.js";
import { drawShapes, formatScore, makeStage } from "./overlay.js";

const MIN_WIDTH = 206;
const HEIGHT = 220;
const EXTRA_ROWS = 1;
const IMAGE_DELAY = 60;

export class Grid extends EventTarget {
  /** @param {HTMLElement} element */
  constructor(element) {
    super();
    this.element = element;
    this.spacer = element.querySelector(".spacer");
    /** @type {import("./dataset.js").Row[]} */
    this.rows = [];
    this.selected = 0;
    this.words = "";
    /** @type {Map<number, HTMLElement>} */
    this.cells = new Map();
    this.columns = 1;
    this.width = MIN_WIDTH;
    this.imageTimer = 0;
    element.addEventListener("scroll", () => this.requestRender(), { passive: true });
    element.addEventListener("keydown", (event) => this.onKey(event));
    element.addEventListener("click", (event) => this.onClick(event, false));
    element.addEventListener("dblclick", (event) => this.onClick(event, true));
    new ResizeObserver(() => this.render()).observe(element);
    this.frame = 0;
  }

  /** Show rows; `words` are marked in them. @param {import("./dataset.js").Row[]} rows @param {string} words */
  show(rows, words) {
    this.rows = rows;
    this.words = words;
    this.selected = Math.max(0, Math.min(this.selected, rows.length - 1));
    this.clear();
    this.render();
    this.dispatchEvent(new Event("select"));
  }

  /** Draw rows again that have changed. @param {import("./dataset.js").Row[]} rows in the same order as before */
  update(rows) {
    this.rows = rows;
    for (const [position, cell] of this.cells) this.fill(cell, position);
  }

  /** @returns {import("./dataset.js").Row | undefined} */
  get row() {
    return this.rows[this.selected];
  }

  clear() {
    for (const cell of this.cells.values()) cell.remove();
    this.cells.clear();
  }

  requestRender() {
    if (!this.frame) this.frame = requestAnimationFrame(() => this.render());
  }

  render() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    const { clientWidth, clientHeight, scrollTop } = this.element;
    const columns = Math.max(1, Math.round((clientWidth - 2) / (MIN_WIDTH + 20)));
    const width = (clientWidth - 6) / columns;
    if (columns !== this.columns || width !== this.width) this.clear();
    this.columns = columns;
    this.width = width;
    this.spacer.style.height = `${Math.ceil(this.rows.length / columns) * HEIGHT}px`;
    const first = Math.max(0, Math.floor(scrollTop / HEIGHT) - EXTRA_ROWS) * columns;
    const last = Math.min(this.rows.length, (Math.ceil((scrollTop + clientHeight) / HEIGHT) + EXTRA_ROWS) * columns);
    for (const [position, cell] of this.cells) {
      if (position >= first && position < last) continue;
      cell.querySelector("img")?.removeAttribute("src"); // ends a request that nobody waits for
      cell.remove();
      this.cells.delete(position);
    }
    for (let position = first; position < last; position++) {
      if (!this.cells.has(position)) this.addCell(position);
    }
    clearTimeout(this.imageTimer);
    this.imageTimer = setTimeout(() => this.loadImages(), IMAGE_DELAY);
  }

  loadImages() {
    for (const [position, cell] of this.cells) {
      const image = cell.querySelector("img");
      if (!image.hasAttribute("src") && this.rows[position]) image.src = imageAddress(this.rows[position]);
    }
  }

  /** @param {number} position */
  addCell(position) {
    const cell = document.createElement("div");
    cell.className = "cell";
    cell.id = `cell-${position}`;
    cell.setAttribute("role", "option");
    cell.dataset.position = String(position);
    cell.style.left = `${(position % this.columns) * this.width + 6}px`;
    cell.style.width = `${this.width - 6}px`;
    cell.style.top = `${Math.floor(position / this.columns) * HEIGHT + 4}px`;
    const frame = document.createElement("div");
    frame.className = "frame";
    const { stage, image } = makeStage("");
    image.addEventListener("error", () => frame.classList.add("unreadable"));
    frame.append(stage);
    const words = document.createElement("div");
    words.className = "words";
    const meta = document.createElement("div");
    meta.className = "meta";
    cell.append(frame, words, meta);
    this.cells.set(position, cell);
    this.fill(cell, position);
    this.spacer.append(cell);
  }

  /** @param {HTMLElement} cell @param {number} position */
  fill(cell, position) {
    const row = this.rows[position];
    if (!row) return;
    cell.classList.toggle("failed", Boolean(row.error || row.locked));
    cell.setAttribute("aria-selected", String(position === this.selected));
    cell.setAttribute("aria-posinset", String(position + 1));
    cell.setAttribute("aria-setsize", String(this.rows.length));
    drawShapes(cell.querySelector(".stage"), row.objects ?? [], { tags: false, offset: 0.5 });
    const words = row.error || row.locked || wordsOf(row) || (row.objects === null ? "(no text)" : "(no objects)");
    markWords(cell.querySelector(".words"), words, this.words);
    const state = row.accepted ? "accepted" : row.edited ? "edited" : "";
    const parts = [["name", row.file_name], ["task", row.task], ["score", formatScore(scoreOf(row))], ["state", state]];
    cell.querySelector(".meta").replaceChildren(
      ...parts.filter(([, text]) => text).map(([name, text]) => {
        const part = document.createElement("span");
        part.className = name;
        part.textContent = text;
        part.title = text;
        return part;
      }),
    );
  }

  /** Select a row and bring it into sight. @param {number} position */
  select(position) {
    if (!this.rows.length) return;
    const before = this.cells.get(this.selected);
    before?.setAttribute("aria-selected", "false");
    this.selected = Math.max(0, Math.min(position, this.rows.length - 1));
    const top = Math.floor(this.selected / this.columns) * HEIGHT;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop) this.element.scrollTop = top;
    if (top + HEIGHT > scrollTop + clientHeight) this.element.scrollTop = top + HEIGHT - clientHeight + 4;
    this.render();
    this.cells.get(this.selected)?.setAttribute("aria-selected", "true");
    this.element.setAttribute("aria-activedescendant", `cell-${this.selected}`);
    this.dispatchEvent(new Event("select"));
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(this.element.clientHeight / HEIGHT)) * this.columns;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns, PageUp: -page, PageDown: page };
    if (event.key in steps) {
      const target = this.selected + steps[event.key];
      if (target >= 0 || event.key === "PageUp") this.select(target);
    } else if (event.key === "Home") this.select(0);
    else if (event.key === "End") this.select(this.rows.length - 1);
    else if (event.key === "Enter") this.dispatchEvent(new Event("open"));
    else return;
    event.preventDefault();
  }

  /** @param {MouseEvent} event @param {boolean} isDouble */
  onClick(event, isDouble) {
    const cell = /** @type {HTMLElement} */ (event.target).closest(".cell");
    if (!cell) return;
    this.select(Number(cell.dataset.position));
    const isTouch = /** @type {PointerEvent} */ (event).pointerType === "touch";
    if (isDouble || isTouch) this.dispatchEvent(new Event("open"));
  }
}

/** Write a text with marks around the words that were searched. @param {HTMLElement} element @param {string} text @param {string} words */
export function markWords(element, text, words) {
  element.replaceChildren();
  const lower = text.toLowerCase();
  let start = 0;
  for (let at = words ? lower.indexOf(words) : -1; at >= 0; at = lower.indexOf(words, start)) {
    const mark = document.createElement("mark");
    mark.textContent = text.slice(at, at + words.length);
    element.append(text.slice(start, at), mark);
    start = at + words.length;
  }
  element.append(text.slice(start));
}
