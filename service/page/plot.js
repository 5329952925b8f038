/** Running plots of the last values of a few series. */

import { make } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [300, 84];

/** Colours that go with light and dark. */
export const COLOURS = ["#3b82c4", "#d9730d", "#2f9e6e", "#c2508f", "#8a7fd1", "#c04a34", "#9c8a1e", "#6b7785"];

/**
 * @typedef {object} PlotOptions
 * @property {string} title
 * @property {(value: number) => string} [write] a value for people.
 * @property {number} [most] values that are kept.
 * @property {boolean} [stacked] one series upon the other.
 */

export class Plot {
  /** @param {PlotOptions} options */
  constructor({ title, write = (value) => value.toFixed(1), most = 60, stacked = false }) {
    this._title = title;
    this._write = write;
    this._most = most;
    this._stacked = stacked;
    /** @type {Map<string, {values: number[], colour: string}>} */
    this._series = new Map();
    /** @type {number | null} */
    this.limit = null;
    this._count = 0;
    this._svg = document.createElementNS(SVG, "svg");
    this._svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this._svg.setAttribute("preserveAspectRatio", "none");
    this._svg.setAttribute("role", "img");
    this._peak = make("span", { className: "quiet numbers" });
    this._legend = make("div", { className: "legend numbers" });
    this.element = make("figure", { className: "plot" }, make("figcaption", {}, make("strong", {}, title), this._peak), this._svg, this._legend);
    this._draw();
  }

  /**
   * Add a value to each series.
   * @param {Record<string, number>} values by the series' names; a new name begins a series.
   * @param {Record<string, string>} [colours] of series, where they are not in order.
   */
  add(values, colours = {}) {
    for (const [name, value] of Object.entries(values)) {
      if (!this._series.has(name)) {
        const colour = colours[name] ?? COLOURS[this._series.size % COLOURS.length];
        this._series.set(name, { values: Array(this._count).fill(0), colour });
      }
      /** @type {any} */ (this._series.get(name)).values.push(value);
    }
    this._count++;
    for (const each of this._series.values()) {
      if (each.values.length < this._count) each.values.push(0);
      if (this._count > this._most) each.values.shift();
    }
    this._count = Math.min(this._count, this._most);
    this._draw();
  }

  clear() {
    this._series.clear();
    this._count = 0;
    this._draw();
  }

  _draw() {
    const base = Array(this._count).fill(0);
    const lines = [...this._series].map(([name, { values, colour }]) => ({
      name,
      colour,
      last: values[values.length - 1] ?? 0,
      tops: values.map((value, index) => (this._stacked ? (base[index] += value) : value)),
    }));
    const highest = Math.max(0, this.limit ?? 0, ...lines.flatMap((line) => line.tops));
    const scale = highest ? (HEIGHT - 4) / highest : 0;
    const x = (/** @type {number} */ index) => WIDTH - ((this._count - 1 - index) / (this._most - 1)) * WIDTH;
    const shapes = lines.reverse().map(({ tops, colour }) => {
      const points = tops.map((top, index) => `${x(index).toFixed(1)},${(HEIGHT - top * scale).toFixed(1)}`);
      const area = this._stacked ? [`${x(0).toFixed(1)},${HEIGHT}`, ...points, `${WIDTH},${HEIGHT}`] : points;
      return shape("polyline", {
        points: area.join(" "),
        fill: this._stacked ? colour : "none",
        stroke: colour,
        "stroke-width": "2",
        "vector-effect": "non-scaling-stroke",
      });
    });
    if (this.limit !== null) {
      const y = String(HEIGHT - this.limit * scale);
      shapes.push(
        shape("line", {
          x1: "0", x2: String(WIDTH), y1: y, y2: y,
          stroke: "#d9480f", "stroke-width": "1.5", "stroke-dasharray": "5 4", "vector-effect": "non-scaling-stroke",
        }),
      );
    }
    this._svg.replaceChildren(...shapes);
    this._peak.textContent = highest ? `peak ${this._write(highest)}` : "nothing yet";
    const said = lines.reverse().map(({ name, last, colour }) => ({ text: `${name} ${this._write(last)}`.trim(), colour }));
    this._svg.setAttribute("aria-label", `${this._title}: ${said.map((each) => each.text).join(", ") || "nothing yet"}`);
    this._legend.replaceChildren(
      ...said.map(({ text, colour }) => {
        const swatch = make("span", { className: "swatch" });
        swatch.style.background = colour;
        return make("span", {}, swatch, ` ${text}`);
      }),
    );
  }
}

/**
 * @param {string} name
 * @param {Record<string, string>} attributes
 */
function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
