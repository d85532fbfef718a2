/**
 * Shapes of an answer drawn above an image.
 *
 * A shape has its points in thousandths of the image's sides, as location tokens have them.
 * @typedef {{kind: string, label: string, rings: number[][], score: number | null}} Shape
 */

const SVG = "http://www.w3.org/2000/svg";
const NUM_COLORS = 8;

/** Return the number of the color of a label: equal labels have equal colors on every page. @param {string} label */
export function colorOf(label) {
  let hash = 7;
  for (const letter of label) hash = (hash * 31 + letter.codePointAt(0)) % 100003;
  return hash % NUM_COLORS;
}

/** Return the points of a ring as an SVG list; a box of two corners has four. @param {Shape} shape @param {number[]} ring */
export function pointsOf(shape, ring) {
  if (shape.kind !== "bboxes") return ring.join(" ");
  const [x1, y1, x2, y2] = ring;
  return `${x1} ${y1} ${x2} ${y1} ${x2} ${y2} ${x1} ${y2}`;
}

/** Return the left and upper side of a shape. @param {Shape} shape @returns {[number, number]} */
export function cornerOf(shape) {
  const all = shape.rings.flat();
  return [Math.min(...all.filter((_, i) => i % 2 === 0)), Math.min(...all.filter((_, i) => i % 2 === 1))];
}

/** Make the stage of an image: the image and, above it, an empty layer for shapes. @param {string} alt */
export function makeStage(alt) {
  const stage = document.createElement("div");
  stage.className = "stage";
  const image = document.createElement("img");
  image.alt = alt;
  image.decoding = "async";
  image.draggable = false;
  image.addEventListener("load", () => image.style.setProperty("--ratio", String(image.naturalWidth / image.naturalHeight)));
  const layer = document.createElementNS(SVG, "svg");
  layer.setAttribute("viewBox", "0 0 1000 1000");
  layer.setAttribute("preserveAspectRatio", "none");
  layer.setAttribute("aria-hidden", "true");
  stage.append(image, layer);
  return { stage, image, layer };
}

/**
 * Draw shapes into a stage, in place of those that it has.
 * @param {HTMLElement} stage
 * @param {Shape[]} shapes
 * @param {{tags?: boolean, selected?: number, offset?: number}} [options] `offset` is added to each coordinate: half a
 *   bin, where they are bins.
 */
export function drawShapes(stage, shapes, { tags = true, selected = -1, offset = 0 } = {}) {
  const layer = stage.querySelector("svg");
  layer.replaceChildren();
  for (const tag of stage.querySelectorAll(".tag")) tag.remove();
  shapes.forEach((shape, index) => {
    for (const ring of shape.rings) {
      const polygon = document.createElementNS(SVG, "polygon");
      const moved = ring.map((value) => value + offset);
      polygon.setAttribute("points", pointsOf(shape, moved));
      polygon.setAttribute("class", `shape k${colorOf(shape.label)}${index === selected ? " selected" : ""}`);
      polygon.dataset.index = String(index);
      layer.append(polygon);
    }
    if (tags && (shape.label || shape.score !== null)) stage.append(makeTag(shape));
  });
}

/** @param {Shape} shape */
function makeTag(shape) {
  const tag = document.createElement("span");
  const [x, y] = cornerOf(shape);
  tag.className = `tag k${colorOf(shape.label)}${y < 60 ? " inside" : ""}`;
  tag.style.left = `${Math.max(0, Math.min(x, 960)) / 10}%`;
  tag.style.top = `${Math.max(0, y) / 10}%`;
  tag.textContent = [shape.label, formatScore(shape.score)].filter(Boolean).join(" ");
  return tag;
}

/** @param {number | null | undefined} score */
export function formatScore(score) {
  return score === null || score === undefined ? "" : score.toFixed(2);
}

/**
 * Convert an answer in pixels to shapes.
 * @param {Record<string, any>} answer as `captions.jsonl` has it
 * @param {number} width of the image
 * @param {number} height of the image
 * @returns {Shape[]}
 */
export function shapesOf(answer, width, height) {
  const scale = (ring) => ring.map((value, i) => (value * 1000) / (i % 2 ? height : width));
  return ["bboxes", "quad_boxes", "polygons"].flatMap((kind) =>
    (answer[kind] ?? []).map((position, index) => ({
      kind,
      label: (answer[`${kind}_labels`] ?? answer.labels ?? [])[index] ?? "",
      score: (answer[`${kind}_scores`] ?? answer.scores ?? [])[index] ?? null,
      rings: (kind === "polygons" ? position : [position]).map(scale),
    })),
  );
}
