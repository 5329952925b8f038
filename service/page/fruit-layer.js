/** Inspected fruits over their image: outlined by grade, infected parts shaded. */

import { gradeColour, percent } from "./grades.js";
import { outlineOf } from "./outlines.js";

const SHADE = "rgb(204 121 167 / 62%)";

/** @typedef {{fruit: any, whole: Path2D, infected: Path2D}} DrawnFruit */

/**
 * Prepare fruits to be drawn.
 * @param {any[]} fruits
 * @returns {Promise<DrawnFruit[]>}
 */
export function drawnFruits(fruits) {
  return Promise.all(
    fruits.map(async (fruit) => {
      const [whole, infected] = await Promise.all([outlineOf(fruit.mask), outlineOf(fruit.infected_mask)]);
      return { fruit, whole, infected };
    }),
  );
}

/**
 * Draw fruits.
 * @param {CanvasRenderingContext2D} ctx
 * @param {number} scale
 * @param {DrawnFruit[]} fruits
 * @param {import("./grades.js").Grade[]} grades
 * @param {number} chosen id of the fruit that is marked; 0 for none.
 */
export function drawFruits(ctx, scale, fruits, grades, chosen) {
  ctx.lineJoin = "round";
  for (const { fruit, whole, infected } of fruits) {
    ctx.fillStyle = SHADE;
    ctx.fill(infected, "evenodd");
    const wide = fruit.id === chosen ? 2 : 0;
    ctx.lineWidth = (5 + wide) / scale;
    ctx.strokeStyle = "rgb(20 16 12 / 75%)";
    ctx.stroke(whole);
    ctx.lineWidth = (2.5 + wide) / scale;
    ctx.strokeStyle = `rgb(${gradeColour(grades, fruit.grade).join(" ")})`;
    ctx.stroke(whole);
  }
  for (const { fruit } of fruits) label(ctx, scale, fruit);
}

/**
 * @param {CanvasRenderingContext2D} ctx
 * @param {number} scale
 * @param {any} fruit
 */
function label(ctx, scale, fruit) {
  const text = `${fruit.grade} ${percent(fruit.infected_fraction)}`;
  const size = 13 / scale;
  ctx.font = `600 ${size}px system-ui, sans-serif`;
  const width = ctx.measureText(text).width + size;
  const [x0, y0, x1] = fruit.box;
  if (width > 1.6 * (x1 - x0) && (x1 - x0) * scale < 40) return; // small fruit seen from afar: the table has it
  const [x, y] = [(x0 + x1 - width) / 2, Math.max(0, y0 - 0.2 * size)];
  ctx.fillStyle = "rgb(20 16 12 / 85%)";
  ctx.beginPath();
  ctx.roundRect(x, y, width, 1.5 * size, 0.4 * size);
  ctx.fill();
  ctx.fillStyle = "#fff";
  ctx.textBaseline = "middle";
  ctx.fillText(text, x + size / 2, y + 0.78 * size);
}
