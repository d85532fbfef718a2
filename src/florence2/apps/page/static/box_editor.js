/** Shapes that the user moves, resizes, draws and deletes on the image, by mouse or by keys. Coordinates are bins. */
import { drawShapes } from "./overlay.js";

const LAST_BIN = 999;
const clamp = (value) => Math.min(Math.max(Math.round(value), 0), LAST_BIN);

/** @typedef {import("./overlay.js").Shape & {origin: number | null, moved: boolean}} EditedShape */

export class BoxEditor extends EventTarget {
  /** @param {{stage: HTMLElement, image: HTMLImageElement}} stage */
  constructor(stage) {
    super();
    this.stage = stage.stage;
    this.image = stage.image;
    /** @type {EditedShape[]} */
    this.shapes = [];
    this.selected = -1;
    this.newKind = "bboxes";
    this.hasLabels = true;
    this.isDrawing = false;
    this.isNew = false;
    /** @type {((point: [number, number]) => void) | null} */
    this.drag = null;
    this.stage.addEventListener("pointerdown", (event) => this.begin(event));
    this.stage.addEventListener("pointermove", (event) => this.drag?.(this.point(event)));
    for (const name of ["pointerup", "pointercancel"]) this.stage.addEventListener(name, () => this.end());
  }

  /** @param {import("./overlay.js").Shape[]} shapes @param {string} newKind of shapes that are drawn @param {boolean} hasLabels */
  show(shapes, newKind, hasLabels) {
    this.shapes = shapes.map((shape, origin) => ({ ...shape, origin, moved: false }));
    this.newKind = newKind;
    this.hasLabels = hasLabels;
    this.selected = -1;
    this.isDrawing = false;
    this.draw();
  }

  /** Show other shapes in place of those of the row, such as a new prediction. @param {import("./overlay.js").Shape[]} shapes */
  propose(shapes) {
    this.shapes = shapes.map((shape) => ({ ...shape, origin: null, moved: true }));
    this.selected = -1;
    this.change();
  }

  /** @param {number} index */
  select(index) {
    this.selected = index;
    this.draw();
    this.dispatchEvent(new Event("select"));
  }

  draw() {
    drawShapes(this.stage, this.shapes, { selected: this.selected, offset: 0.5 });
    for (const handle of this.stage.querySelectorAll(".handle")) handle.remove();
    const shape = this.shapes[this.selected];
    for (const { x, y, ring, at } of shape ? handlesOf(shape) : []) {
      const handle = document.createElement("span");
      handle.className = "handle";
      handle.style.left = `${(x + 0.5) / 10}%`;
      handle.style.top = `${(y + 0.5) / 10}%`;
      Object.assign(handle.dataset, { ring, at });
      this.stage.append(handle);
    }
  }

  change() {
    this.draw();
    this.dispatchEvent(new Event("change"));
  }

  /** @param {PointerEvent} event @returns {[number, number]} */
  point(event) {
    const box = this.image.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * 1000 - 0.5, ((event.clientY - box.top) / box.height) * 1000 - 0.5];
  }

  /** @param {PointerEvent} event */
  begin(event) {
    const target = /** @type {HTMLElement} */ (event.target);
    const start = this.point(event);
    this.isNew = this.isDrawing;
    if (this.isDrawing) this.drag = this.startShape(start);
    else if (target.matches(".handle")) this.drag = this.startResize(Number(target.dataset.ring), Number(target.dataset.at));
    else if (target.matches(".shape")) {
      this.select(Number(target.dataset.index));
      this.drag = this.startMove(start);
    } else return this.select(-1);
    event.preventDefault();
    this.stage.setPointerCapture(event.pointerId);
  }

  end() {
    if (!this.drag) return;
    this.drag = null;
    const shape = this.shapes[this.selected];
    if (shape?.kind === "bboxes") shape.rings = [sortedBox(shape.rings[0])];
    this.change();
    if (this.isNew) this.dispatchEvent(new Event("add"));
  }

  /** @param {[number, number]} start */
  startMove(start) {
    const shape = this.shapes[this.selected];
    const before = shape.rings;
    return ([x, y]) => this.place(shape, movedRings(before, x - start[0], y - start[1]));
  }

  /** @param {number} ring @param {number} at */
  startResize(ring, at) {
    const shape = this.shapes[this.selected];
    return ([x, y]) => {
      const rings = shape.rings.map((each) => [...each]);
      const [ix, iy] = shape.kind === "bboxes" ? [at & 1 ? 2 : 0, at & 2 ? 3 : 1] : [2 * at, 2 * at + 1];
      rings[ring][ix] = clamp(x);
      rings[ring][iy] = clamp(y);
      this.place(shape, rings);
    };
  }

  /** Begin a new shape at a point. @param {[number, number]} start */
  startShape(start) {
    this.isDrawing = false;
    const label = this.shapes[this.selected]?.label ?? "";
    const corner = start.map(clamp);
    /** @type {EditedShape} */
    const shape = { kind: this.newKind, label, score: null, rings: [], origin: null, moved: true };
    this.shapes.push(shape);
    this.selected = this.shapes.length - 1;
    const place = ([x, y]) => {
      const box = sortedBox([corner[0], corner[1], clamp(x), clamp(y)]);
      this.place(shape, [shape.kind === "bboxes" ? box : fourCorners(box)]);
    };
    place([start[0] + 20, start[1] + 20]);
    return place;
  }

  /** Add a shape in the middle, for those who use keys. */
  addInMiddle() {
    this.startShape([400, 400])([600, 600]);
    this.change();
    this.dispatchEvent(new Event("add"));
  }

  /** @param {EditedShape} shape @param {number[][]} rings */
  place(shape, rings) {
    shape.rings = rings;
    shape.moved = true;
    shape.score = null;
    this.draw();
  }

  /** Move the selected shape, or its right lower corner. @param {number} dx @param {number} dy @param {boolean} isResize */
  nudge(dx, dy, isResize) {
    const shape = this.shapes[this.selected];
    if (!shape) return;
    if (!isResize) this.place(shape, movedRings(shape.rings, dx, dy));
    else if (shape.kind === "bboxes") {
      const [x1, y1, x2, y2] = shape.rings[0];
      this.place(shape, [[x1, y1, Math.max(x1, clamp(x2 + dx)), Math.max(y1, clamp(y2 + dy))]]);
    } else return;
    this.change();
  }

  remove() {
    if (this.selected < 0) return;
    this.shapes.splice(this.selected, 1);
    this.selected = Math.min(this.selected, this.shapes.length - 1);
    this.change();
  }

  /** Return the objects as the server takes them: those that did not move without their position. */
  toChange() {
    return this.shapes.map(({ kind, label, rings, origin, moved }) =>
      moved ? { kind, label, rings, ...(origin === null ? {} : { origin }) } : { kind, label, origin },
    );
  }
}

/** @param {number[][]} rings @param {number} dx @param {number} dy */
function movedRings(rings, dx, dy) {
  const all = rings.flat();
  const [xs, ys] = [0, 1].map((axis) => all.filter((_, i) => i % 2 === axis));
  const x = Math.min(Math.max(Math.round(dx), -Math.min(...xs)), LAST_BIN - Math.max(...xs));
  const y = Math.min(Math.max(Math.round(dy), -Math.min(...ys)), LAST_BIN - Math.max(...ys));
  return rings.map((ring) => ring.map((value, i) => value + (i % 2 ? y : x)));
}

/** @param {number[]} box */
function sortedBox([x1, y1, x2, y2]) {
  return [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)];
}

/** @param {number[]} box */
function fourCorners([x1, y1, x2, y2]) {
  return [x1, y1, x2, y1, x2, y2, x1, y2];
}

/** @param {EditedShape} shape */
function handlesOf(shape) {
  if (shape.kind === "bboxes") {
    const box = shape.rings[0];
    return [0, 1, 2, 3].map((at) => ({ x: box[at & 1 ? 2 : 0], y: box[at & 2 ? 3 : 1], ring: 0, at }));
  }
  return shape.rings.flatMap((ring, index) =>
    Array.from({ length: ring.length / 2 }, (_, at) => ({ x: ring[2 * at], y: ring[2 * at + 1], ring: index, at })),
  );
}
