/** The states of the shapes of one row, for undo before anything is written. */

/** @typedef {{shapes: import("./edited_shapes.js").EditedShape[], selected: number}} ShapeState */

export class ShapeHistory {
  constructor() {
    /** @type {ShapeState[]} the present state last */
    this.states = [];
    this.typed = "";
  }

  /** Begin with the state of a row. @param {ShapeState} state */
  restart(state) {
    this.states = [copyOf(state)];
    this.typed = "";
  }

  /** Take a new state; letters that are typed into one field are one step. @param {ShapeState} state @param {string} typed */
  take(state, typed = "") {
    if (typed && typed === this.typed) this.states.pop();
    this.typed = typed;
    this.states.push(copyOf(state));
  }

  /** Take another selection, which is no step of its own. @param {number} selected */
  select(selected) {
    this.states[this.states.length - 1].selected = selected;
  }

  get isChanged() {
    return this.states.length > 1;
  }

  /** @returns {ShapeState} the present state */
  get last() {
    return copyOf(this.states[this.states.length - 1]);
  }

  /** Go back by one step, and return the state before. @returns {ShapeState} */
  back() {
    this.states.pop();
    this.typed = "";
    return this.last;
  }
}

/** Rings are never changed, but replaced, so the shapes alone are copied. @param {ShapeState} state */
function copyOf({ shapes, selected }) {
  return { shapes: shapes.map((shape) => ({ ...shape })), selected };
}
