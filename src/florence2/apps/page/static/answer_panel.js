/** The answer beside the image: text, objects with scores above a threshold, and JSON. */
import { colorOf, drawShapes, formatScore, shapesOf } from "./overlay.js";

const NUMBERS = /\[[-\d.,\s]+\]/g; // lists of numbers

const find = (id) => document.getElementById(id);

export class AnswerPanel {
  /** @param {{stage: HTMLElement, image: HTMLImageElement}} stage */
  constructor(stage) {
    this.stage = stage;
    /** @type {Record<string, any> | null} */
    this.row = null;
    find("threshold").addEventListener("input", () => this.draw());
    find("copy").addEventListener("click", () => this.copy());
  }

  /** Show a row of the server's answer; null shows the image alone. @param {Record<string, any> | null} row */
  show(row) {
    this.row = row;
    find("answer").hidden = !row;
    find("copy").textContent = "Copy";
    if (row) {
      const { milliseconds: _, ...plain } = row;
      find("json").textContent = JSON.stringify(plain, null, 2).replace(NUMBERS, oneLine);
    }
    this.draw();
  }

  draw() {
    const { naturalWidth: width, naturalHeight: height } = this.stage.image;
    const shapes = this.row?.answer ? shapesOf(this.row.answer, width || 1, height || 1) : [];
    const hasScores = shapes.some((shape) => shape.score !== null);
    const threshold = hasScores ? Number(find("threshold").value) : 0;
    const shown = shapes.filter((shape) => shape.score === null || shape.score >= threshold);
    drawShapes(this.stage.stage, shown);
    find("threshold-field").hidden = !hasScores;
    find("threshold-value").textContent = threshold.toFixed(2);
    find("text").textContent = this.describe(shapes.length, shown.length);
    find("objects").replaceChildren(...shown.map(listItem));
  }

  /** @param {number} total @param {number} number */
  describe(total, number) {
    if (!this.row) return "";
    if (!this.row.answer) return this.row.text || "(no text)";
    const noun = total === 1 ? "object" : "objects";
    return number === total ? `${total} ${noun}` : `${number} of ${total} ${noun}`;
  }

  async copy() {
    const text = find("json").textContent;
    try {
      await navigator.clipboard.writeText(text);
      find("copy").textContent = "Copied";
    } catch {
      getSelection()?.selectAllChildren(find("json"));
      find("copy").textContent = "Selected: press Ctrl+C";
    }
  }
}

/** @param {string} list */
function oneLine(list) {
  return list.replace(/\s+/g, " ").replace("[ ", "[").replace(" ]", "]");
}

/** @param {import("./overlay.js").Shape} shape */
function listItem(shape) {
  const item = document.createElement("li");
  const swatch = document.createElement("span");
  swatch.className = `swatch k${colorOf(shape.label)}`;
  const label = document.createElement("span");
  label.textContent = shape.label || shape.kind.replace("_", " ");
  const score = document.createElement("span");
  score.className = "score";
  score.textContent = formatScore(shape.score);
  item.append(swatch, label, score);
  return item;
}
