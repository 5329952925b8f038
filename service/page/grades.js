/** Grades of fruit: limits, colours, and sliders to move the limits. */

import { make } from "./dom.js";

/** @typedef {{grade: string, max_infected_fraction: number}} Grade */

const REJECT = "reject";
const REJECT_COLOUR = [213, 94, 0];
const OTHER_COLOUR = [150, 150, 150];
const COLOURS = [
  [0, 114, 178],
  [0, 158, 115],
  [240, 228, 66],
  [86, 180, 233],
];
/* As in the service's overlays. */

const STEPS = 1000;

/**
 * Return the colour of a grade.
 * @param {Grade[]} grades from best to worst.
 * @param {string} name
 */
export function gradeColour(grades, name) {
  if (name === REJECT) return REJECT_COLOUR;
  const place = grades.findIndex((each) => each.grade === name);
  return place < 0 ? OTHER_COLOUR : COLOURS[place % COLOURS.length];
}

/**
 * Return the grade of a fruit by the limits: the first that its infected fraction does not exceed.
 * @param {Grade[]} grades
 * @param {number} fraction
 */
export function gradeOf(grades, fraction) {
  return grades.find((each) => fraction <= each.max_infected_fraction)?.grade ?? REJECT;
}

/**
 * Return grades in order: those named first, then others that fruits have, rejects last.
 * @param {Grade[]} grades
 * @param {Iterable<string>} had
 */
export function gradeNames(grades, had) {
  const known = grades.map((each) => each.grade);
  const others = [...new Set(had)].filter((name) => name !== REJECT && !known.includes(name));
  return [...known, ...others, REJECT];
}

/**
 * Write a fraction for people.
 * @param {number} fraction
 */
export function percent(fraction) {
  const value = fraction * 100;
  return `${value > 0 && value < 10 ? value.toFixed(1).replace(/\.0$/, "") : Math.round(value)} %`;
}

/**
 * Show a slider for each limit; its scale is finer where limits are small, and limits keep their order.
 * @param {HTMLElement} box is filled.
 * @param {Grade[]} grades
 * @param {(grades: Grade[], settled: boolean) => void} change is called with new limits, and once more when let go.
 */
export function showSliders(box, grades, change) {
  let now = grades;
  const rows = grades.map(({ grade }, index) => {
    const slider = make("input", { type: "range", min: 0, max: STEPS, "aria-label": `Limit of grade ${grade}` });
    const output = make("output", { className: "numbers" });
    const swatch = make("span", { className: "swatch" });
    swatch.style.background = `rgb(${gradeColour(grades, grade).join(" ")})`;
    const show = () => {
      const limit = now[index].max_infected_fraction;
      slider.value = Math.round(Math.sqrt(limit) * STEPS);
      slider.setAttribute("aria-valuetext", `at most ${percent(limit)} infected`);
      output.textContent = percent(limit);
    };
    slider.addEventListener("input", () => {
      const limit = Math.round((Number(slider.value) / STEPS) ** 2 * 1000) / 1000;
      now = moved(now, index, limit);
      for (const each of rows) each.show();
      change(now, false);
    });
    slider.addEventListener("change", () => change(now, true));
    show();
    return { row: make("label", { className: "grade" }, make("span", {}, swatch, ` ${grade}`), slider, output), show };
  });
  box.replaceChildren(...rows.map((each) => each.row));
}

/**
 * Return grades with another limit; neighbours give way, so that limits still rise.
 * @param {Grade[]} grades
 * @param {number} index
 * @param {number} limit
 */
function moved(grades, index, limit) {
  const least = 0.001;
  const last = grades.length - 1;
  const limits = grades.map((each) => each.max_infected_fraction);
  limits[index] = Math.min(1 - (last - index) * least, Math.max(index * least, limit));
  for (let at = index - 1; at >= 0; at--) limits[at] = Math.min(limits[at], limits[at + 1] - least);
  for (let at = index + 1; at <= last; at++) limits[at] = Math.max(limits[at], limits[at - 1] + least);
  return grades.map(({ grade }, at) => ({ grade, max_infected_fraction: Math.round(limits[at] * 1000) / 1000 }));
}
