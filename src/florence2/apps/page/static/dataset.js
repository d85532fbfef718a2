/**
 * The rows of the dataset, and the requests that change them.
 *
 * @typedef {{index: number, version: number, file_name: string, task: string, output: string, input: string,
 *   text: string, objects: import("./overlay.js").Shape[] | null, score: number | null, error: string,
 *   accepted: boolean, locked: string, edited?: boolean}} Row
 */

const token = document.querySelector("meta[name=token]").content;

export class Dataset extends EventTarget {
  constructor() {
    super();
    /** @type {Row[]} */
    this.rows = [];
    this.name = "";
    this.note = "";
    this.undoName = "";
    /** @type {Promise<unknown>} the last request; the next one begins when it has ended, in the order of the user */
    this.last = Promise.resolve();
  }

  /** @template T @param {() => Promise<T>} work @returns {Promise<T>} */
  inOrder(work) {
    const next = this.last.then(work);
    this.last = next.catch(() => {});
    return next;
  }

  async load() {
    this.takeAll(await request("GET", "rows"));
  }

  reload() {
    return this.inOrder(async () => this.takeAll(await request("POST", "reload")));
  }

  /** Write changes of rows as this page last saw them. @param {{changes: {row: number}[], name: string}} body */
  change(body) {
    return this.inOrder(async () => {
      const changes = body.changes.map((each) => ({ ...each, version: this.rows[each.row].version }));
      this.take(await request("POST", "changes", { ...body, changes }), true);
    });
  }

  /** Revert the last change, and return its name. */
  undo() {
    return this.inOrder(async () => {
      const answer = await request("POST", "undo");
      this.take(answer, false);
      return answer.undone;
    });
  }

  /** Show what a replacement changes, or apply it. @param {object} body */
  replace(body) {
    return this.inOrder(async () => {
      const answer = await request("POST", "replace", body);
      if (answer.rows) this.take(answer, true);
      return answer;
    });
  }

  /** Ask the model about a row again. @param {number} index */
  ask(index) {
    return request("POST", `ask/${index}`);
  }

  takeAll(answer) {
    this.rows = answer.rows;
    this.name = answer.name;
    this.note = answer.note;
    this.undoName = answer.undo;
    this.dispatchEvent(new Event("load"));
  }

  /** @param {{rows: Row[], undo: string}} answer @param {boolean} isEdited */
  take(answer, isEdited) {
    for (const row of answer.rows) this.rows[row.index] = { ...row, edited: isEdited };
    this.undoName = answer.undo;
    this.dispatchEvent(new CustomEvent("change", { detail: answer.rows.map((row) => row.index) }));
  }
}

/** Return the address of a row's image. @param {Row} row @param {boolean} [isLarge] */
export function imageAddress(row, isLarge = false) {
  return `/review/images/${row.index}${isLarge ? "?large=true" : ""}`;
}

/** Return what a person reads of a row. @param {Row} row */
export function wordsOf(row) {
  return row.objects === null ? row.text : row.objects.map((each) => each.label).filter(Boolean).join(", ");
}

/**
 * Return the score by which a row is found: the lowest of its objects, where they have scores, else that of its text. The
 * text of a detection is improbable even where every object is certain, because it has many positions.
 * @param {Row} row @returns {number | null}
 */
export function scoreOf(row) {
  const scores = (row.objects ?? []).map((each) => each.score).filter((score) => score !== null);
  return scores.length ? Math.min(...scores) : row.score;
}

/** @param {string} method @param {string} path @param {object} [body] */
async function request(method, path, body) {
  const headers = { "x-florence2-token": token, "content-type": "application/json" };
  const options = { method, headers, body: body === undefined ? undefined : JSON.stringify(body) };
  let response;
  try {
    response = await fetch(`/review/${path}`, options);
  } catch {
    throw new Error("florence2 review does not answer; nothing was written.");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error([answer.error, answer.hint].filter(Boolean).join("; ") || `status ${response.status}`);
  return answer;
}
