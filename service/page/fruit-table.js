/** The table of inspected fruits, sorted by any of its columns. */

import { make } from "./dom.js";
import { gradeColour, percent } from "./grades.js";

const COLUMNS = [
  { name: "Fruit", of: (/** @type {any} */ fruit) => fruit.id },
  { name: "Grade", of: (/** @type {any} */ fruit) => fruit.grade, left: true },
  { name: "Infected", of: (/** @type {any} */ fruit) => fruit.infected_fraction },
  { name: "Confidence", of: (/** @type {any} */ fruit) => fruit.confidence },
  { name: "Pixels", of: (/** @type {any} */ fruit) => fruit.area },
];

export class FruitTable {
  /**
   * @param {HTMLElement} box is filled.
   * @param {(id: number) => void} pick is called for the fruit that the person chose.
   */
  constructor(box, pick) {
    this._pick = pick;
    this._column = 2;
    this._down = true;
    /** @type {any[]} */
    this._fruits = [];
    /** @type {import("./grades.js").Grade[]} */
    this._grades = [];
    this._chosen = 0;
    this._heads = COLUMNS.map(({ name, left }, index) => {
      const button = make("button", { type: "button" }, name);
      button.addEventListener("click", () => this._sortBy(index));
      return make("th", { scope: "col", className: left ? "left" : "" }, button);
    });
    this._body = make("tbody");
    box.replaceChildren(make("table", { className: "numbers" }, make("thead", {}, make("tr", {}, ...this._heads)), this._body));
  }

  /**
   * @param {any[]} fruits
   * @param {import("./grades.js").Grade[]} grades
   * @param {number} chosen id of the one that is marked; 0 for none.
   */
  show(fruits, grades, chosen) {
    [this._fruits, this._grades, this._chosen] = [fruits, grades, chosen];
    this._render();
  }

  /** @param {number} index */
  _sortBy(index) {
    this._down = this._column === index ? !this._down : index > 1;
    this._column = index;
    this._render();
  }

  _render() {
    const { of } = COLUMNS[this._column];
    const way = this._down ? -1 : 1;
    const sorted = [...this._fruits].sort((a, b) => {
      const [one, other] = [of(a), of(b)];
      return way * (typeof one === "string" ? one.localeCompare(other) : one - other) || a.id - b.id;
    });
    this._heads.forEach((head, index) => {
      head.setAttribute("aria-sort", index !== this._column ? "none" : this._down ? "descending" : "ascending");
    });
    const focused = /** @type {any} */ (document.activeElement)?.dataset?.fruit;
    this._body.replaceChildren(...sorted.map((fruit) => this._row(fruit)));
    if (focused) this._body.querySelector(`[data-fruit="${focused}"]`)?.focus();
  }

  /** @param {any} fruit */
  _row(fruit) {
    const swatch = make("span", { className: "swatch" });
    swatch.style.background = `rgb(${gradeColour(this._grades, fruit.grade).join(" ")})`;
    const link = make(
      "button",
      { type: "button", className: "link", "data-fruit": String(fruit.id), "aria-label": `Show fruit ${fruit.id}` },
      String(fruit.id),
    );
    link.addEventListener("click", () => this._pick(fruit.id));
    const marks = [fruit.truncated && "cut by the edge", fruit.refined && "outlined by the SAM"].filter(Boolean);
    const interval = intervalOf(fruit);
    const unsure = interval !== "" && fruit.grade_certain === false;
    return make(
      "tr",
      { className: fruit.id === this._chosen ? "chosen" : "", title: marks.join(", ") },
      make("td", {}, link),
      make("td", { className: "left" }, swatch, ` ${fruit.grade}`, ...(unsure ? [make("span", { className: "quiet" }, " unsure")] : [])),
      make("td", {}, percent(fruit.infected_fraction), ...(interval ? [make("div", { className: "quiet" }, interval)] : [])),
      make("td", {}, percent(fruit.confidence)),
      make("td", {}, fruit.area.toLocaleString("en")),
    );
  }
}

/**
 * Return in what range the fraction lies, where the service says so; else nothing.
 * @param {any} fruit
 */
function intervalOf(fruit) {
  const given = fruit.infected_fraction_interval;
  return Array.isArray(given) ? `${percent(given[0])} to ${percent(given[1])}` : "";
}
