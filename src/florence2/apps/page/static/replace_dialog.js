/** Search and replace: a preview while the user types, then all rows in one step of undo. */
const find = (id) => document.getElementById(id);
const WAIT = 150;

export class ReplaceDialog {
  /**
   * @param {import("./dataset.js").Dataset} dataset
   * @param {() => number[]} shownRows returns the indexes of the rows that the filter shows
   * @param {(message: string) => void} onDone
   */
  constructor(dataset, shownRows, onDone) {
    this.dataset = dataset;
    this.shownRows = shownRows;
    this.onDone = onDone;
    this.timer = 0;
    this.number = 0;
    for (const id of ["replace-search", "replace-by", "replace-case", "replace-whole"]) {
      find(id).addEventListener("input", () => {
        find("replace-apply").disabled = true;
        clearTimeout(this.timer);
        this.timer = setTimeout(() => this.preview(), WAIT);
      });
    }
    find("replace-apply").addEventListener("click", () => this.apply());
    for (const id of ["replace-search", "replace-by"]) {
      find(id).addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault());
    }
  }

  /** @param {string} words */
  open(words) {
    if (words) find("replace-search").value = words;
    find("replace-dialog").showModal();
    find("replace-search").select();
    this.preview();
  }

  body() {
    return {
      search: find("replace-search").value,
      replacement: find("replace-by").value,
      match_case: find("replace-case").checked,
      full_words: find("replace-whole").checked,
      rows: this.shownRows(),
    };
  }

  async preview() {
    const number = ++this.number;
    const body = this.body();
    const rows = body.rows.length.toLocaleString("en");
    find("replace-preview").hidden = true;
    find("replace-apply").disabled = true;
    find("replace-apply").textContent = "Replace";
    find("replace-count").textContent = `In the ${rows} rows that the filter shows.`;
    if (!body.search) return;
    try {
      const answer = await this.dataset.replace(body);
      if (number === this.number) this.show(answer, rows);
    } catch (error) {
      find("replace-count").textContent = error.message;
    }
  }

  /** @param {Record<string, any>} answer @param {string} rows */
  show(answer, rows) {
    const left = answer.num_left_out ? `; ${answer.num_left_out} rows with errors are left out` : "";
    find("replace-count").textContent = `${answer.num_occurrences} times in ${answer.num_rows} of ${rows} rows${left}`;
    find("replace-apply").disabled = !answer.num_rows;
    find("replace-apply").textContent = `Replace in ${answer.num_rows} rows`;
    find("replace-preview").hidden = !answer.num_rows;
    find("replace-preview").replaceChildren(
      ...answer.examples.map(({ before, after }) => {
        const line = document.createElement("div");
        for (const [name, text] of [["del", before], ["ins", after]]) {
          const part = document.createElement(name);
          part.textContent = text;
          line.append(part);
        }
        return line;
      }),
    );
  }

  async apply() {
    try {
      const answer = await this.dataset.replace({ ...this.body(), apply: true });
      find("replace-dialog").close();
      this.onDone(`replaced ${answer.num_occurrences} times in ${answer.num_rows} rows`);
    } catch (error) {
      find("replace-count").textContent = error.message;
    }
  }
}
