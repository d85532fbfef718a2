/** The review view: the grid of rows, the editor beside it, and the keys of both. */
import { Dataset } from "./dataset.js";
import { Editor } from "./editor.js";
import { Filters } from "./filters.js";
import { Grid } from "./grid.js";
import { ReplaceDialog } from "./replace_dialog.js";

const find = (id) => document.getElementById(id);
const dataset = new Dataset();
const filters = new Filters();
const grid = new Grid(find("grid"));
const editor = new Editor(dataset, showError);
const dialog = new ReplaceDialog(dataset, () => grid.rows.map((row) => row.index), showMessage);

/** @param {string} text */
function showMessage(text) {
  find("message").textContent = text;
  find("error").textContent = "";
}

/** @param {string} text */
function showError(text) {
  find("message").textContent = "";
  find("error").textContent = text;
}

/** Run an action of the user, and show its error. @param {() => Promise<string | void>} action */
async function attempt(action) {
  try {
    showMessage((await action()) ?? "");
  } catch (error) {
    showError(error.message);
  }
}

function showRows() {
  const rows = filters.apply(dataset.rows);
  grid.show(rows, filters.words);
  const accepted = dataset.rows.reduce((total, row) => total + Number(row.accepted), 0);
  const number = (value) => value.toLocaleString("en");
  find("count").textContent = `${number(rows.length)} of ${number(dataset.rows.length)} rows, ${number(accepted)} accepted`;
}

/** Show changed rows where they are: a row that no longer passes the filter stays until the filter changes. */
function updateRows() {
  grid.update(grid.rows.map((row) => dataset.rows[row.index]));
  const accepted = dataset.rows.reduce((total, row) => total + Number(row.accepted), 0);
  find("count").textContent = find("count").textContent.replace(/[\d,]+ accepted/, `${accepted.toLocaleString("en")} accepted`);
  if (editor.isOpen && editor.row) editor.refresh(dataset.rows[editor.row.index]);
  showUndo();
}

function showUndo() {
  const isEditing = editor.isOpen && editor.boxes.isChanged;
  find("undo").disabled = !isEditing && !dataset.undoName;
  find("undo").title = isEditing ? "the last step on this image" : dataset.undoName;
}

/** Revert the last step on the image of the editor, or else the last change that was written. */
async function undo() {
  if (editor.isOpen && editor.boxes.undo()) return;
  await attempt(async () => `undone: ${await dataset.undo()}`);
}

/** @param {import("./dataset.js").Row | undefined} row */
async function accept(row) {
  if (!row || row.locked) return;
  grid.select(grid.selected); // a row that was scrolled away comes into sight
  if (editor.isOpen && editor.row?.index === row.index) return void (await editor.save({ isAccepted: !row.accepted }));
  const change = { row: row.index, accepted: !row.accepted };
  const name = `${row.accepted ? "take back" : "accept"} ${row.file_name}`;
  await attempt(() => dataset.change({ name, changes: [change] }));
}

function openEditor() {
  if (!grid.row) return;
  editor.open();
  editor.show(grid.row);
  grid.select(grid.selected);
  editor.focus();
}

async function saveAndNext() {
  if (!(await editor.save())) return;
  grid.select(grid.selected + 1);
  editor.focus();
}

async function closeEditor() {
  if (!(await editor.save())) return;
  editor.close();
  grid.element.focus();
  grid.select(grid.selected);
}

grid.addEventListener("open", openEditor);
grid.addEventListener("select", async () => {
  if (!editor.isOpen || editor.row?.index === grid.row?.index) return;
  const target = grid.row;
  if (await editor.save()) editor.show(target && dataset.rows[target.index]);
});
for (const name of ["change", "restart"]) editor.boxes.addEventListener(name, showUndo);
filters.addEventListener("change", showRows);
dataset.addEventListener("change", updateRows);
dataset.addEventListener("load", () => {
  find("name").textContent = dataset.name;
  filters.showTasks(dataset.rows);
  showRows();
  showUndo();
});
find("undo").addEventListener("click", undo);
find("replace").addEventListener("click", () => dialog.open(find("search").value));
find("reload").addEventListener("click", () => attempt(async () => (await dataset.reload(), "read again")));
find("save").addEventListener("click", saveAndNext);
find("accept").addEventListener("click", () => accept(grid.row));
find("close").addEventListener("click", closeEditor);
find("search").addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === "Escape") grid.element.focus();
});

document.addEventListener("keydown", (event) => {
  if (find("replace-dialog").open) return;
  const target = /** @type {HTMLElement} */ (event.target);
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && editor.isOpen) saveAndNext();
  else if (event.key === "Escape" && editor.isOpen) closeEditor();
  else if (target.matches("input, textarea, select")) return;
  else if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo();
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (event.key === "a") accept(grid.row);
  else if (event.key === "u") undo();
  else if (event.key === "/") find("search").select();
  else if (event.key === "r") dialog.open(find("search").value);
  else if (event.key === "n" && editor.isOpen && editor.row?.objects) editor.boxes.addInMiddle();
  else return;
  event.preventDefault();
});

addEventListener("beforeunload", (event) => editor.isDirty && event.preventDefault());

attempt(async () => {
  await dataset.load();
  grid.element.focus();
  return dataset.note;
});
