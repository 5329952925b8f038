/** Results in the formats of other tools. A fruit's infected part is a region of its own, inside that of the fruit. */

import { areaOf, cropOf, pixelsOf } from "./masks.js";
import { indexedPng } from "./png.js";

const CATEGORIES = { object: 1, healthy: 2, infected: 3 };

/**
 * Red, green, blue of objects, in order and again from the start. The colours are those of Okabe and Ito, "Color Universal
 * Design" (2008); without orange and black, and yellow last: on fruit it is the hardest to see.
 */
export const PALETTE = [
  [0, 114, 178],
  [204, 121, 167],
  [0, 158, 115],
  [86, 180, 233],
  [213, 94, 0],
  [240, 228, 66],
];

/**
 * @typedef {object} Region
 * @property {import("./masks.js").Rle} mask
 * @property {keyof typeof CATEGORIES} label
 * @property {number} score 0 to 1.
 * @property {object} [attributes] kept where the format has a place for them.
 *
 * @typedef {{name: string, width: number, height: number}} ImageFacts
 */

/**
 * Return the regions of an inspected fruit: all of it, and its infected part where it has one.
 * @param {any} fruit
 * @returns {Region[]}
 */
export function regionsOfFruit(fruit) {
  const { mask, infected_mask, box, area, confidence, ...attributes } = fruit;
  const whole = { mask, label: /** @type {const} */ ("healthy"), score: confidence, attributes };
  if (!areaOf(infected_mask)) return [whole];
  const of = { fruit: fruit.id };
  return [whole, { mask: infected_mask, label: "infected", score: confidence, attributes: of }];
}

/**
 * Return masks as the service writes them, with their labels.
 * @param {Region[]} regions
 * @param {ImageFacts} image
 */
export function toRle(regions, image) {
  return {
    image: { file_name: image.name, width: image.width, height: image.height },
    masks: regions.map(({ mask, label, score, attributes }) => ({ label, score, mask, ...attributes })),
  };
}

/**
 * Return COCO's instances JSON.
 * @param {Region[]} regions
 * @param {ImageFacts} image
 */
export function toCoco(regions, image) {
  return {
    images: [{ id: 1, file_name: image.name, width: image.width, height: image.height }],
    annotations: regions.map(({ mask, label, score, attributes }, index) => {
      const { x, y, width, height } = cropOf(mask);
      return {
        ...attributes,
        id: index + 1,
        image_id: 1,
        category_id: CATEGORIES[label],
        segmentation: mask,
        bbox: [x, y, width, height],
        area: areaOf(mask),
        iscrowd: 0,
        score,
      };
    }),
    categories: Object.entries(CATEGORIES).map(([name, id]) => ({ id, name })),
  };
}

/**
 * Return a list of one Label Studio task with a prediction, to be imported.
 * @param {Region[]} regions
 * @param {ImageFacts} image
 */
export function toLabelStudio(regions, image) {
  const result = regions.map(({ mask, label, score }, index) => ({
    id: `pomona-${index + 1}`,
    type: "brushlabels",
    from_name: "label",
    to_name: "image",
    original_width: image.width,
    original_height: image.height,
    image_rotation: 0,
    score,
    value: { format: "rle", rle: brushOf(pixelsOf(mask)), brushlabels: [label[0].toUpperCase() + label.slice(1)] },
  }));
  const score = regions.length ? Math.min(...regions.map((each) => each.score)) : 0;
  return [{ data: { image: image.name }, predictions: [{ model_version: "pomona", score, result }] }];
}

/**
 * Return an image whose pixels are the numbers of the regions, from 1; 0 outside. Later regions cover earlier ones.
 * @param {Region[]} regions
 * @param {ImageFacts} image
 */
export function toPng(regions, image) {
  const pixels = new Uint8Array(image.width * image.height);
  regions.forEach(({ mask }, index) => {
    const crop = cropOf(mask);
    for (let y = 0; y < crop.height; y++) {
      for (let x = 0; x < crop.width; x++) {
        if (crop.pixels[y * crop.width + x]) pixels[(y + crop.y) * image.width + x + crop.x] = Math.min(index + 1, 255);
      }
    }
  });
  const palette = [[0, 0, 0], ...Array.from({ length: 255 }, (_, number) => PALETTE[number % PALETTE.length])];
  return indexedPng(pixels, image.width, image.height, palette);
}

/* Label Studio's brush masks are RGBA images, row by row, packed as by @thi.ng/rle-pack: bits, highest first. The header
   has the number of words (32 bits), the bits of a word less 1 (5) and four lengths of counts less 1 (4 each). Chunks
   follow: 1 for a repeated word, two bits for the length of the count, the count less 1, the word. */
const COUNT_BITS = [4, 8, 12, 16];

/**
 * Pack a mask: opaque white inside, transparent black outside.
 * @param {Uint8Array} pixels row by row.
 * @returns {number[]} bytes.
 */
export function brushOf(pixels) {
  /** @type {number[]} */
  const bytes = [];
  let held = 0;
  let free = 8;
  const write = (/** @type {number} */ value, /** @type {number} */ bits) => {
    for (let bit = bits - 1; bit >= 0; bit--) {
      held = (held << 1) | ((value >>> bit) & 1);
      if (--free === 0) {
        bytes.push(held);
        held = 0;
        free = 8;
      }
    }
  };
  write(pixels.length * 4, 32);
  write(7, 5);
  for (const bits of COUNT_BITS) write(bits - 1, 4);
  for (let begin = 0; begin < pixels.length; ) {
    let end = begin + 1;
    while (end < pixels.length && pixels[end] === pixels[begin]) end++;
    for (let left = (end - begin) * 4; left > 0; ) {
      const count = Math.min(left, 1 << 16);
      const choice = COUNT_BITS.findIndex((bits) => count <= 1 << bits);
      write(1, 1);
      write(choice, 2);
      write(count - 1, COUNT_BITS[choice]);
      write(pixels[begin] ? 255 : 0, 8);
      left -= count;
    }
    begin = end;
  }
  if (free < 8) bytes.push(held << free);
  return bytes;
}
