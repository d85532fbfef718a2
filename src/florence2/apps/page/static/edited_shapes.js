/** The shapes of a row as the user changes them: which one is selected, each change one step of undo. Coordinates are bins. */
import { drawShapes } from "./overlay.js";
import { drawHandles, removeCorner } from "./polygon_corners.js";
import { nudgedRings } from "./shape_geometry.js";
import { ShapeHistory } from "./shape_history.js";

/** @typedef {import("./overlay.js").Shape & {origin: number | null, moved: boolean}} EditedShape */

export class EditedShapes extends EventTarget {
  /** @param {HTMLElement} stage */
  constructor(stage) {
    super();
    this.stage = stage;
    /** @type {EditedShape[]} */
    this.shapes = [];
    this.selected = -1;
    this.newKind = "bboxes";
    this.hasLabels = true;
    this.isLocked = false;
    /** @type {{ring: number, at: number} | null} the corner that was pressed last */
    this.corner = null;
    /** @type {number[] | null} the corners of a polygon that is being drawn by clicks */
    this.outline = null;
    this.history = new ShapeHistory();
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
    this.corner = null;
    this.history.select(index);
    this.draw();
    this.dispatchEvent(new Event("select"));
  }

  draw() {
    drawShapes(this.stage, this.shapes, { selected: this.selected, offset: 0.5 });
    drawHandles(this.stage, this.isLocked || this.outline ? undefined : this.shapes[this.selected], this.corner);
  }

  /** Take the shapes as they are now for one step of `undo`; typed letters of one field are one step. @param {string} typed */
  change(typed = "") {
    this.history.take(this, typed);
    this.draw();
    this.dispatchEvent(new Event("change"));
  }

  get isChanged() {
    return this.history.isChanged;
  }

  /** Go back by one step; return false where the shapes are those of the row. */
  undo() {
    if (!this.isChanged) return false;
    Object.assign(this, this.history.back(), { corner: null });
    this.draw();
    this.dispatchEvent(new Event("change"));
    return true;
  }

  /** Add a shape with the label of the selected one, and select it. @param {number[][]} rings */
  addShape(rings) {
    const label = this.shapes[this.selected]?.label ?? "";
    /** @type {EditedShape} */
    const shape = { kind: this.newKind, label, score: null, rings, origin: null, moved: true };
    this.shapes.push(shape);
    Object.assign(this, { selected: this.shapes.length - 1, corner: null });
    return shape;
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
    const rings = shape && nudgedRings(shape, dx, dy, isResize);
    if (!rings || this.isLocked) return;
    this.place(shape, rings);
    this.change();
  }

  /** Remove the selected shape. */
  remove() {
    if (this.selected < 0 || this.isLocked) return;
    this.shapes.splice(this.selected, 1);
    this.selected = Math.min(this.selected, this.shapes.length - 1);
    this.corner = null;
    this.change();
  }

  /** Remove the corner of a polygon that was pressed last, or else the selected shape. */
  removeCornerOrShape() {
    const shape = this.shapes[this.selected];
    if (!this.corner || shape?.kind !== "polygons") return this.remove();
    const rings = removeCorner(shape.rings, this.corner.ring, this.corner.at);
    if (!rings) return this.remove(); // two corners are no polygon
    this.corner = null;
    this.place(shape, rings);
    this.change();
  }

  /** Return the objects as the server takes them: those that did not move without their position. */
  toChange() {
    return this.shapes.map(({ kind, label, rings, origin, moved }) =>
      moved ? { kind, label, rings, ...(origin === null ? {} : { origin }) } : { kind, label, origin },
    );
  }
}
