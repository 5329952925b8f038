/** Masks as paths to fill and to stroke, sharp at every zoom. */

const worker = new Worker(new URL("./mask-worker.js", import.meta.url), { type: "module" });
/** @type {Map<number, (rings: Int32Array[]) => void>} */
const waiting = new Map();
/** @type {WeakMap<object, Promise<Path2D>>} */
const known = new WeakMap();
let last = 0;

worker.addEventListener("message", ({ data: { id, rings } }) => {
  waiting.get(id)?.(rings);
  waiting.delete(id);
});

/**
 * Return the outline of a mask; to be filled by the even-odd rule.
 * @param {import("./masks.js").Rle} mask
 * @returns {Promise<Path2D>}
 */
export function outlineOf(mask) {
  let outline = known.get(mask);
  if (outline === undefined) {
    outline = new Promise((resolve) => {
      const id = ++last;
      waiting.set(id, (rings) => resolve(pathOf(rings)));
      worker.postMessage({ id, mask });
    });
    known.set(mask, outline);
  }
  return outline;
}

/** @param {Int32Array[]} rings */
function pathOf(rings) {
  const path = new Path2D();
  for (const ring of rings) {
    path.moveTo(ring[0], ring[1]);
    for (let at = 2; at < ring.length; at += 2) path.lineTo(ring[at], ring[at + 1]);
    path.closePath();
  }
  return path;
}
