/** A region that the user drags on an image, as pixels in a text field. */
import { drawShapes } from "./overlay.js";

export class RegionInput {
  /**
   * @param {{stage: HTMLElement, image: HTMLImageElement}} stage
   * @param {HTMLInputElement} field
   */
  constructor(stage, field) {
    this.stage = stage;
    this.field = field;
    this.isEnabled = false;
    /** @type {[number, number] | null} */
    this.start = null;
    stage.stage.addEventListener("pointerdown", (event) => this.begin(event));
    stage.stage.addEventListener("pointermove", (event) => this.move(event));
    stage.stage.addEventListener("pointerup", () => (this.start = null));
  }

  /** @param {boolean} isEnabled */
  enable(isEnabled) {
    this.isEnabled = isEnabled;
    this.stage.stage.classList.toggle("drags", isEnabled);
  }

  /** @param {PointerEvent} event @returns {[number, number]} in fractions of the image's sides */
  point(event) {
    const box = this.stage.image.getBoundingClientRect();
    const clamp = (value) => Math.min(Math.max(value, 0), 1);
    return [clamp((event.clientX - box.left) / box.width), clamp((event.clientY - box.top) / box.height)];
  }

  /** @param {PointerEvent} event */
  begin(event) {
    if (!this.isEnabled) return;
    event.preventDefault();
    this.stage.stage.setPointerCapture(event.pointerId);
    this.start = this.point(event);
  }

  /** @param {PointerEvent} event */
  move(event) {
    if (!this.start) return;
    const [x, y] = this.point(event);
    const left = Math.min(x, this.start[0]), right = Math.max(x, this.start[0]);
    const top = Math.min(y, this.start[1]), bottom = Math.max(y, this.start[1]);
    const { naturalWidth: width, naturalHeight: height } = this.stage.image;
    const pixels = [left * width, top * height, right * width, bottom * height].map(Math.round);
    this.field.value = pixels.join(",");
    this.field.dispatchEvent(new Event("input"));
    const ring = [left, top, right, bottom].map((value) => value * 1000);
    drawShapes(this.stage.stage, [{ kind: "bboxes", label: "region", rings: [ring], score: null }]);
  }
}
