/** Geometry of the shapes of the editor: moved rings, sorted boxes, corners. Coordinates are bins. */

const LAST_BIN = 999;

/** @param {number} value */
export const clamp = (value) => Math.min(Math.max(Math.round(value), 0), LAST_BIN);

/** Return the bins of a pointer, which may lie outside of the image. @param {HTMLImageElement} image @param {PointerEvent} event @returns {[number, number]} */
export function pointIn(image, event) {
  const box = image.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * 1000 - 0.5, ((event.clientY - box.top) / box.height) * 1000 - 0.5];
}

/**
 * Return the rings of a shape that is moved, or of a box whose right lower corner is; null for the corner of another shape.
 * @param {import("./overlay.js").Shape} shape @param {number} dx @param {number} dy @param {boolean} isResize
 */
export function nudgedRings(shape, dx, dy, isResize) {
  if (!isResize) return movedRings(shape.rings, dx, dy);
  if (shape.kind !== "bboxes") return null;
  const [x1, y1, x2, y2] = shape.rings[0];
  return [[x1, y1, Math.max(x1, clamp(x2 + dx)), Math.max(y1, clamp(y2 + dy))]];
}

/** @param {number[][]} rings @param {number} dx @param {number} dy */
export function movedRings(rings, dx, dy) {
  const all = rings.flat();
  const [xs, ys] = [0, 1].map((axis) => all.filter((_, i) => i % 2 === axis));
  const x = Math.min(Math.max(Math.round(dx), -Math.min(...xs)), LAST_BIN - Math.max(...xs));
  const y = Math.min(Math.max(Math.round(dy), -Math.min(...ys)), LAST_BIN - Math.max(...ys));
  return rings.map((ring) => ring.map((value, i) => value + (i % 2 ? y : x)));
}

/** @param {number[]} box */
export function sortedBox([x1, y1, x2, y2]) {
  return [Math.min(x1, x2), Math.min(y1, y2), Math.max(x1, x2), Math.max(y1, y2)];
}

/** @param {number[]} box */
export function fourCorners([x1, y1, x2, y2]) {
  return [x1, y1, x2, y1, x2, y2, x1, y2];
}

/** @param {import("./overlay.js").Shape} shape */
export function handlesOf(shape) {
  if (shape.kind === "bboxes") {
    const box = shape.rings[0];
    return [0, 1, 2, 3].map((at) => ({ x: box[at & 1 ? 2 : 0], y: box[at & 2 ? 3 : 1], ring: 0, at }));
  }
  return shape.rings.flatMap((ring, index) =>
    Array.from({ length: ring.length / 2 }, (_, at) => ({ x: ring[2 * at], y: ring[2 * at + 1], ring: index, at })),
  );
}
