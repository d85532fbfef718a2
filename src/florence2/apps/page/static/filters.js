/** The filters above the grid: words, task, state, scores, order. */
import { scoreOf, wordsOf } from "./dataset.js";

const find = (id) => document.getElementById(id);
const FIELDS = ["search", "task", "state", "low", "high", "order"];
const WAIT = 120;

export class Filters extends EventTarget {
  constructor() {
    super();
    this.timer = 0;
    for (const id of FIELDS) {
      find(id).addEventListener("input", () => {
        clearTimeout(this.timer);
        this.timer = setTimeout(() => this.dispatchEvent(new Event("change")), id === "search" ? WAIT : 0);
      });
    }
    find("clear").addEventListener("click", () => {
      for (const id of FIELDS) find(id).value = "";
      this.dispatchEvent(new Event("change"));
    });
  }

  /** @returns {string} in lower case */
  get words() {
    return find("search").value.toLowerCase();
  }

  /** List the tasks of the rows. @param {import("./dataset.js").Row[]} rows */
  showTasks(rows) {
    const counts = new Map();
    for (const row of rows) counts.set(row.task, (counts.get(row.task) ?? 0) + 1);
    const options = [...counts].sort().map(([task, number]) => new Option(`${task.slice(0, 40)} (${number})`, task));
    const before = find("task").value;
    find("task").replaceChildren(new Option("all", ""), ...options);
    find("task").value = counts.has(before) ? before : "";
  }

  /** Return the rows that pass, in order. @param {import("./dataset.js").Row[]} rows */
  apply(rows) {
    const words = this.words;
    const [task, state, order] = ["task", "state", "order"].map((id) => find(id).value);
    const [low, high] = ["low", "high"].map((id) => (find(id).value === "" ? null : Number(find(id).value)));
    const passed = rows.filter(
      (row) =>
        (!task || row.task === task) &&
        (!state || hasState(row, state)) &&
        (low === null || (scoreOf(row) !== null && scoreOf(row) >= low)) &&
        (high === null || (scoreOf(row) !== null && scoreOf(row) <= high)) &&
        (!words || `${wordsOf(row)}\n${row.file_name}`.toLowerCase().includes(words)),
    );
    if (order === "score") passed.sort((a, b) => (scoreOf(a) ?? 2) - (scoreOf(b) ?? 2));
    if (order === "name") passed.sort((a, b) => (a.file_name < b.file_name ? -1 : a.file_name > b.file_name ? 1 : 0));
    return passed;
  }
}

/** @param {import("./dataset.js").Row} row @param {string} state */
function hasState(row, state) {
  const isEmpty = row.objects === null ? !row.text : !row.objects.length;
  const states = {
    open: !row.accepted,
    accepted: row.accepted,
    edited: Boolean(row.edited),
    empty: isEmpty && !row.error,
    error: Boolean(row.error || row.locked),
  };
  return states[state];
}
