/** Shapes that the user moves, resizes, draws and deletes on the image, by mouse or by keys. Coordinates are bins. */
import { EditedShapes } from "./edited_shapes.js";
import { edgeMiddles, insertCorner, isEndOf, isNear } from "./polygon_corners.js";
import { clamp, fourCorners, movedRings, pointIn, sortedBox } from "./shape_geometry.js";

export class BoxEditor extends EditedShapes {
  /** @param {{stage: HTMLElement, image: HTMLImageElement}} stage */
  constructor(stage) {
    super(stage.stage);
    this.stage.tabIndex = -1;
    this.image = stage.image;
    this.isDrawing = false;
    this.isNew = false;
    /** @type {((point: [number, number]) => void) | null} */
    this.drag = null;
    this.stage.addEventListener("pointerdown", (event) => this.begin(event));
    this.stage.addEventListener("pointermove", (event) => this.follow(pointIn(this.image, event)));
    for (const name of ["pointerup", "pointercancel"]) this.stage.addEventListener(name, () => this.end());
    this.stage.addEventListener("contextmenu", (event) => this.removePressed(event));
  }

  /** @param {import("./overlay.js").Shape[]} shapes @param {{newKind: string, hasLabels: boolean, isLocked: boolean}} options */
  show(shapes, { newKind, hasLabels, isLocked }) {
    this.shapes = shapes.map((shape, origin) => ({ ...shape, origin, moved: false }));
    Object.assign(this, { newKind, hasLabels, isLocked, selected: -1, corner: null, outline: null });
    this.history.restart(this);
    this.stopDrawing();
    this.dispatchEvent(new Event("restart"));
  }

  /** Go back by one step; a polygon that is being drawn is one. */
  undo() {
    return this.outline ? this.stopDrawing() : super.undo();
  }

  /** Wait for a shape: a box or quad is dragged, a polygon is dragged or clicked corner by corner. */
  startDrawing() {
    this.isDrawing = true;
    this.stage.focus();
    this.dispatchEvent(new Event("draw"));
  }

  /** End to draw; a polygon that is not complete is removed. Return true. */
  stopDrawing() {
    if (this.outline) this.shapes.splice(this.selected, 1);
    if (this.outline) this.selected = -1;
    Object.assign(this, { outline: null, isDrawing: false, isNew: false, drag: null });
    this.draw();
    this.dispatchEvent(new Event("draw"));
    return true;
  }

  /** @param {PointerEvent} event */
  begin(event) {
    if (event.button !== 0 || this.isLocked) return;
    const target = /** @type {HTMLElement} */ (event.target);
    const start = pointIn(this.image, event);
    const { ring, at } = target.dataset;
    if (this.outline) this.addToOutline(start);
    else if (this.isDrawing) this.drag = this.startShape(start);
    else if (target.matches(".handle")) this.drag = this.startResize(Number(ring), Number(at), target.matches(".middle"));
    else if (target.matches(".shape")) {
      this.select(Number(target.dataset.index));
      this.drag = this.startMove(start);
    } else return this.select(-1);
    this.stage.focus();
    event.preventDefault();
    this.stage.setPointerCapture(event.pointerId);
  }

  /** @param {[number, number]} point */
  follow(point) {
    if (this.drag) this.drag(point);
    else if (this.outline) this.place(this.shapes[this.selected], [[...this.outline, ...point.map(clamp)]]);
  }

  end() {
    if (!this.drag) return;
    this.drag = null;
    const shape = this.shapes[this.selected];
    if (shape?.kind === "bboxes") shape.rings = [sortedBox(shape.rings[0])];
    if (this.isNew && this.outline) return;
    const { shapes } = this.history.last;
    if (shape === undefined || String(shape.rings) === String(shapes[this.selected]?.rings)) {
      this.shapes = shapes; // a click moves nothing
      return this.draw();
    }
    this.change();
    if (this.isNew) this.finish();
  }

  finish() {
    this.isNew = false;
    this.dispatchEvent(new Event("draw"));
    this.dispatchEvent(new Event("add"));
  }

  /** Add a corner to the polygon that is being drawn; one near the first or the last corner ends it. @param {[number, number]} point */
  addToOutline(point) {
    if (isEndOf(this.outline, point)) this.closeOutline();
    else this.outline.push(...point.map(clamp));
  }

  /** End the polygon that is being drawn; with fewer than three corners it is none. */
  closeOutline() {
    if (!this.outline || this.outline.length < 6) return this.stopDrawing();
    this.place(this.shapes[this.selected], [this.outline]);
    this.outline = null;
    this.change();
    this.finish();
    return true;
  }

  /** @param {[number, number]} start */
  startMove(start) {
    const shape = this.shapes[this.selected];
    const before = shape.rings;
    return ([x, y]) => this.place(shape, movedRings(before, x - start[0], y - start[1]));
  }

  /** @param {number} ring @param {number} at @param {boolean} isMiddle where a new corner begins */
  startResize(ring, at, isMiddle) {
    const shape = this.shapes[this.selected];
    if (isMiddle) {
      const { x, y } = edgeMiddles(shape.rings).find((each) => each.ring === ring && each.at === at);
      this.place(shape, insertCorner(shape.rings, ring, at, x, y));
    }
    this.corner = { ring, at };
    this.draw();
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
    const corner = start.map(clamp);
    const shape = this.addShape([]);
    Object.assign(this, { isDrawing: false, isNew: true });
    const isPolygon = shape.kind === "polygons";
    const drag = ([x, y]) => {
      const box = sortedBox([corner[0], corner[1], clamp(x), clamp(y)]);
      const isClick = isPolygon && isNear(corner, [x, y]);
      this.outline = isClick ? [...corner] : null;
      this.place(shape, [isClick ? [...corner] : shape.kind === "bboxes" ? box : fourCorners(box)]);
    };
    drag(isPolygon ? start : [start[0] + 20, start[1] + 20]);
    return drag;
  }

  /** Add a shape in the middle, for those who use keys. */
  addInMiddle() {
    if (this.isLocked) return;
    const box = [400, 400, 600, 600];
    this.addShape([this.newKind === "bboxes" ? box : fourCorners(box)]);
    this.change();
    this.finish();
  }

  /** Remove the corner under a press of the second button. @param {MouseEvent} event */
  removePressed(event) {
    const target = /** @type {HTMLElement} */ (event.target);
    if (this.isLocked || this.shapes[this.selected]?.kind !== "polygons" || !target.matches(".handle:not(.middle)")) return;
    event.preventDefault();
    this.corner = { ring: Number(target.dataset.ring), at: Number(target.dataset.at) };
    this.removeCornerOrShape();
  }
}
