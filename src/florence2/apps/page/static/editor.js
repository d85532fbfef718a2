/** The editor of one row: its image, its text or its objects. */
import { BoxEditor } from "./box_editor.js";
import { imageAddress, scoreOf } from "./dataset.js";
import { formatScore, makeStage } from "./overlay.js";
import { focusSelected, onKey, showObjects } from "./object_list.js";

const find = (id) => document.getElementById(id);
const NEW_KINDS = { boxes: "bboxes", phrases: "bboxes", regions: "bboxes", "boxes or polygons": "bboxes", quads: "quad_boxes", polygons: "polygons" };
const UNLABELED = ["regions", "polygons"];

export class Editor {
  /** @param {import("./dataset.js").Dataset} dataset @param {(message: string) => void} onError */
  constructor(dataset, onError) {
    this.dataset = dataset;
    this.onError = onError;
    /** @type {import("./dataset.js").Row | null} */
    this.row = null;
    this.isDirty = false;
    this.stage = makeStage("The image of the row");
    find("view").append(this.stage.stage);
    this.boxes = new BoxEditor(this.stage);
    this.boxes.addEventListener("change", () => {
      this.isDirty = this.boxes.isChanged;
      this.showObjects();
    });
    this.boxes.addEventListener("draw", () => find("editor").classList.toggle("draws", this.boxes.isDrawing || this.boxes.outline !== null));
    this.stage.stage.addEventListener("keydown", (event) => !this.row?.locked && onKey(event, this.boxes, true));
    this.boxes.addEventListener("add", () => focusSelected(find("objects"), this.boxes));
    this.boxes.addEventListener("select", () => this.showObjects());
    find("text").addEventListener("input", () => (this.isDirty = true));
    find("add").addEventListener("click", () => this.boxes.startDrawing());
    find("discard").addEventListener("click", () => this.show(this.dataset.rows[this.row.index]));
    find("ask").addEventListener("click", () => this.ask());
    find("ask").hidden = !document.querySelector("meta[name=can-ask]").content;
  }

  get isOpen() {
    return !find("editor").hidden;
  }

  open() {
    find("editor").hidden = false;
    document.querySelector(".review").classList.add("editing");
  }

  close() {
    find("polygon-help").hidden = true;
    find("editor").hidden = true;
    document.querySelector(".review").classList.remove("editing");
  }

  /** Take over what was saved, without loss of what the user has typed since. @param {import("./dataset.js").Row} row */
  refresh(row) {
    if (!this.isDirty || this.row?.index !== row.index) return this.show(row);
    this.row = row;
    this.showState(row);
  }

  /** Show a row as it is saved. @param {import("./dataset.js").Row | undefined} row */
  show(row) {
    this.row = row ?? null;
    this.isDirty = false;
    if (!row) return this.close();
    find("title").textContent = row.file_name;
    const score = scoreOf(row);
    find("facts").textContent = [row.task, row.input, score === null ? "" : `score ${formatScore(score)}`].filter(Boolean).join(" · ");
    const address = imageAddress(row, true);
    if (this.stage.image.getAttribute("src") !== address) this.stage.image.src = address;
    this.stage.image.hidden = row.error.endsWith("does not exist");
    const isText = row.objects === null;
    find("text-field").hidden = !isText;
    find("objects-field").hidden = isText;
    if (find("text").value !== row.text) find("text").value = row.text;
    const [newKind, hasLabels] = [NEW_KINDS[row.output] ?? "bboxes", !UNLABELED.includes(row.output)];
    find("polygon-help").hidden = newKind !== "polygons" && !row.objects?.some((shape) => shape.kind === "polygons");
    this.boxes.show(row.objects ?? [], { newKind, hasLabels, isLocked: Boolean(row.locked) });
    this.showObjects();
    this.showState(row);
  }

  /** @param {import("./dataset.js").Row} row */
  showState(row) {
    find("locked").hidden = !(row.locked || row.error);
    find("locked").textContent = row.locked || row.error;
    find("accept").textContent = row.accepted ? "Accepted: take back" : "Accept";
    for (const id of ["text", "save", "accept", "add"]) find(id).disabled = Boolean(row.locked);
  }

  /** Put the focus where the user types. */
  focus() {
    const first = this.row?.objects === null ? find("text") : find("objects").querySelector("button, input") ?? find("add");
    first.focus();
  }

  /** Write what was changed; return whether nothing is left to write. @param {{isAccepted?: boolean}} [options] */
  async save({ isAccepted } = {}) {
    const row = this.row;
    if (this.boxes.outline) this.boxes.closeOutline();
    if (!row || row.locked || (!this.isDirty && isAccepted === undefined)) return true;
    const change = { row: row.index };
    if (this.isDirty && row.objects === null && find("text").value !== row.text) change.text = find("text").value;
    if (this.isDirty && row.objects !== null) change.objects = this.boxes.toChange();
    if (isAccepted !== undefined) change.accepted = isAccepted;
    this.isDirty = false;
    if (Object.keys(change).length === 1) return true;
    const verb = isAccepted === undefined ? "edit" : isAccepted ? "accept" : "take back";
    try {
      await this.dataset.change({ name: `${verb} ${row.file_name}`, changes: [change] });
      return true;
    } catch (error) {
      this.isDirty = true;
      this.onError(error.message);
      return false;
    }
  }

  async ask() {
    const row = this.row;
    if (!row) return;
    find("ask").disabled = true;
    try {
      const answer = await this.dataset.ask(row.index);
      if (answer.error) throw new Error(answer.error);
      if (this.row !== row) return;
      if (row.objects === null) find("text").value = answer.text;
      else this.boxes.propose(answer.objects);
      if (row.objects === null) this.isDirty = true;
    } catch (error) {
      this.onError(error.message);
    } finally {
      find("ask").disabled = false;
    }
  }

  showObjects() {
    showObjects(find("objects"), this.boxes, Boolean(this.row?.locked));
  }
}
