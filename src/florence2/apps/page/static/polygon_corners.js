/** Handles of shapes and corners of polygons: where one may be inserted, and rings with one more or one less. Coordinates are bins. */

import { handlesOf } from "./shape_geometry.js";

const MIN_EDGE = 30; // a shorter edge has no handle in its middle, which would cover those of its corners
const NEAR = 12;

/**
 * List the middles of the edges; `at` is the index that a corner there gets.
 * @param {number[][]} rings
 * @returns {{x: number, y: number, ring: number, at: number}[]}
 */
export function edgeMiddles(rings) {
  return rings.flatMap((ring, index) => {
    const number = ring.length / 2;
    return Array.from({ length: number }, (_, at) => at).flatMap((at) => {
      const next = (at + 1) % number;
      const [x1, y1, x2, y2] = [ring[2 * at], ring[2 * at + 1], ring[2 * next], ring[2 * next + 1]];
      if (Math.hypot(x2 - x1, y2 - y1) < MIN_EDGE) return [];
      return [{ x: Math.round((x1 + x2) / 2), y: Math.round((y1 + y2) / 2), ring: index, at: at + 1 }];
    });
  });
}

/** @param {number[][]} rings @param {number} ring @param {number} at @param {number} x @param {number} y */
export function insertCorner(rings, ring, at, x, y) {
  return rings.map((each, index) => (index === ring ? [...each.slice(0, 2 * at), x, y, ...each.slice(2 * at)] : each));
}

/**
 * Remove a corner; a ring of three corners is removed as one. Return null where nothing would remain.
 * @param {number[][]} rings @param {number} ring @param {number} at
 */
export function removeCorner(rings, ring, at) {
  if (rings[ring].length > 6) return rings.map((each, index) => (index === ring ? each.toSpliced(2 * at, 2) : each));
  return rings.length > 1 ? rings.toSpliced(ring, 1) : null;
}

/** Return whether two points are so near that a click on one means the other. @param {number[]} a @param {number[]} b */
export function isNear(a, b) {
  return Math.hypot(a[0] - b[0], a[1] - b[1]) < NEAR;
}

/** Return whether a click ends an outline of three or more corners: one near its first or last corner. @param {number[]} outline @param {number[]} point */
export function isEndOf(outline, point) {
  return outline.length > 4 && (isNear(outline.slice(0, 2), point) || isNear(outline.slice(-2), point));
}

/**
 * Draw the handles of a shape: one on each corner, and on a polygon one in the middle of each edge.
 * @param {HTMLElement} stage
 * @param {import("./overlay.js").Shape | undefined} shape
 * @param {{ring: number, at: number} | null} pressed the corner that was pressed last
 */
export function drawHandles(stage, shape, pressed) {
  for (const handle of stage.querySelectorAll(".handle")) handle.remove();
  if (!shape) return;
  const middles = shape.kind === "polygons" ? edgeMiddles(shape.rings) : [];
  for (const corner of handlesOf(shape)) {
    const isPressed = corner.ring === pressed?.ring && corner.at === pressed.at;
    stage.append(makeHandle(corner, isPressed ? "handle pressed" : "handle"));
  }
  for (const middle of middles) stage.append(makeHandle(middle, "handle middle"));
}

/** @param {{x: number, y: number, ring: number, at: number}} position @param {string} className */
function makeHandle({ x, y, ring, at }, className) {
  const handle = document.createElement("span");
  handle.className = className;
  handle.style.left = `${(x + 0.5) / 10}%`;
  handle.style.top = `${(y + 0.5) / 10}%`;
  Object.assign(handle.dataset, { ring, at });
  return handle;
}
