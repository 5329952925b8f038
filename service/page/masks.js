/**
 * Masks as COCO's compressed run lengths: `{size: [height, width], counts: "…"}`, runs down the columns, the first of
 * pixels outside the mask. Pure functions, for the page and its worker.
 */

/**
 * @typedef {{size: [number, number], counts: string}} Rle
 * @typedef {{x: number, y: number, width: number, height: number, pixels: Uint8Array}} Crop row by row, 1 inside.
 */

/**
 * Return the lengths of the runs.
 * @param {string} counts
 * @returns {number[]}
 */
export function runsOf(counts) {
  const runs = [];
  let at = 0;
  while (at < counts.length) {
    let value = 0;
    let shift = 0;
    let code;
    do {
      code = counts.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16 && shift < 32) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

/**
 * Write the lengths of runs as COCO does.
 * @param {number[]} runs
 * @returns {string}
 */
export function countsOf(runs) {
  const codes = [];
  runs.forEach((run, index) => {
    let value = index > 2 ? run - runs[index - 2] : run;
    for (;;) {
      const bits = value & 31;
      value >>= 5;
      const more = bits & 16 ? value !== -1 : value !== 0;
      codes.push(String.fromCharCode(48 + (more ? bits | 32 : bits)));
      if (!more) break;
    }
  });
  return codes.join("");
}

/**
 * Return the number of pixels in a mask.
 * @param {Rle} mask
 */
export function areaOf(mask) {
  return runsOf(mask.counts).reduce((sum, run, index) => (index % 2 ? sum + run : sum), 0);
}

/**
 * Return the pixels of a mask's tight box.
 * @param {Rle} mask
 * @returns {Crop} of no size for an empty mask.
 */
export function cropOf(mask) {
  const [height] = mask.size;
  const runs = runsOf(mask.counts);
  let [left, right, top, bottom] = [Infinity, -1, Infinity, -1];
  eachRun(runs, (begin, end) => {
    const [first, last] = [Math.floor(begin / height), Math.floor((end - 1) / height)];
    left = Math.min(left, first);
    right = Math.max(right, last);
    top = Math.min(top, first === last ? begin % height : 0);
    bottom = Math.max(bottom, first === last ? (end - 1) % height : height - 1);
  });
  if (right < 0) return { x: 0, y: 0, width: 0, height: 0, pixels: new Uint8Array() };
  const crop = { x: left, y: top, width: right - left + 1, height: bottom - top + 1 };
  const pixels = new Uint8Array(crop.width * crop.height);
  eachRun(runs, (begin, end) => {
    for (let at = begin; at < end; ) {
      const column = Math.floor(at / height);
      const until = Math.min(end, (column + 1) * height);
      const x = column - left;
      for (let y = at - column * height - top, stop = until - column * height - top; y < stop; y++) {
        pixels[y * crop.width + x] = 1;
      }
      at = until;
    }
  });
  return { ...crop, pixels };
}

/**
 * Return all pixels of a mask, row by row.
 * @param {Rle} mask
 * @returns {Uint8Array}
 */
export function pixelsOf(mask) {
  const [height, width] = mask.size;
  const whole = new Uint8Array(height * width);
  const crop = cropOf(mask);
  for (let y = 0; y < crop.height; y++) {
    const row = crop.pixels.subarray(y * crop.width, (y + 1) * crop.width);
    whole.set(row, (y + crop.y) * width + crop.x);
  }
  return whole;
}

/**
 * Return the outlines of a crop along the edges of its pixels: closed rings of x, y in pixels of the image, the inside
 * on their right. Filled by the even-odd rule they are the mask.
 * @param {Crop} crop
 * @returns {Int32Array[]}
 */
export function outlinesOf({ x: left, y: top, width, height, pixels }) {
  const stride = width + 2; // a border of pixels outside, so that none has to be asked whether it exists
  const framed = new Uint8Array(stride * (height + 2));
  for (let y = 0; y < height; y++) framed.set(pixels.subarray(y * width, (y + 1) * width), (y + 1) * stride + 1);
  const rings = [];
  for (let at = stride; at < framed.length - stride; at++) {
    if (framed[at] === INSIDE && framed[at - stride] === 0) rings.push(follow(framed, stride, at, left - 1, top - 1));
  }
  return rings;
}

const INSIDE = 1;
const PASSED = 2;
/* Inside as well; its upper edge belongs to a ring already. */

/**
 * Follow the edge of a mask from the upper edge of a pixel until it closes.
 * @param {Uint8Array} framed pixels with a border; notes those whose upper edge was passed.
 * @param {number} stride
 * @param {number} start index of the pixel.
 * @param {number} left of the frame in the image.
 * @param {number} top
 */
function follow(framed, stride, start, left, top) {
  // East, south, west, north: the step to the next corner, and the pixels ahead of it to the right and to the left. A
  // corner has the index of the pixel at its lower right.
  const steps = [1, stride, -1, -stride];
  const rights = [0, -1, -stride - 1, -stride];
  const lefts = [-stride, 0, -1, -stride - 1];
  const ring = [];
  let [corner, way, came] = [start, 0, 3];
  do {
    if (way !== came) ring.push((corner % stride) + left, Math.floor(corner / stride) + top);
    came = way;
    if (way === 0) framed[corner] = PASSED;
    corner += steps[way];
    if (framed[corner + rights[way]] === 0) way = (way + 1) % 4;
    else if (framed[corner + lefts[way]] !== 0) way = (way + 3) % 4;
  } while (corner !== start || way !== 0);
  return Int32Array.from(ring);
}

/**
 * @param {number[]} runs
 * @param {(begin: number, end: number) => void} each
 */
function eachRun(runs, each) {
  let at = 0;
  runs.forEach((run, index) => {
    if (index % 2 && run) each(at, at + run);
    at += run;
  });
}
