/** The objects of an image that are being segmented: their prompts and masks, with undo. Pure, but for `History`. */

/**
 * @typedef {{x: number, y: number, label: 0 | 1}} Point
 * @typedef {{mask: import("./masks.js").Rle, score: number, stability_score: number, box: number[], area: number}} ScoredMask
 *
 * @typedef {object} Item an object of the image.
 * @property {number} id never used twice.
 * @property {Point[]} points
 * @property {[number, number, number, number] | null} box
 * @property {ScoredMask[]} masks best first; empty while there is no answer.
 * @property {number} chosen which of them.
 * @property {object | null} asked the prompt that they answer; null where no prompt made them.
 *
 * @typedef {{items: Item[], active: number, next: number}} Objects `active` is an item's id.
 */

/** @type {Objects} */
export const NOTHING = { items: [blank(1)], active: 1, next: 2 };

/**
 * @param {number} id
 * @returns {Item}
 */
function blank(id) {
  return { id, points: [], box: null, masks: [], chosen: 0, asked: null };
}

/**
 * @param {Objects} objects
 * @param {number} [id] by default the active one's.
 * @returns {Item}
 */
export function item(objects, id = objects.active) {
  return /** @type {Item} */ (objects.items.find((each) => each.id === id));
}

/** @param {Item} each */
export function isBlank(each) {
  return each.points.length === 0 && each.box === null && each.masks.length === 0;
}

/**
 * @param {Objects} objects
 * @param {Partial<Item>} change of an item.
 * @param {number} [id]
 * @returns {Objects}
 */
export function changed(objects, change, id = objects.active) {
  return { ...objects, items: objects.items.map((each) => (each.id === id ? { ...each, ...change } : each)) };
}

/**
 * @param {Objects} objects
 * @param {Point} point
 */
export function withPoint(objects, point) {
  return changed(objects, { points: [...item(objects).points, point] });
}

/**
 * @param {Objects} objects
 * @param {[number, number, number, number]} box replaces one that there was.
 */
export function withBox(objects, box) {
  return changed(objects, { box });
}

/**
 * Begin another object, unless the active one is still blank.
 * @param {Objects} objects
 * @returns {Objects}
 */
export function withAnother(objects) {
  if (isBlank(item(objects))) return objects;
  const begun = objects.items.find(isBlank);
  if (begun) return { ...objects, active: begun.id };
  return { items: [...objects.items, blank(objects.next)], active: objects.next, next: objects.next + 1 };
}

/**
 * @param {Objects} objects
 * @param {number} id
 * @returns {Objects}
 */
export function without(objects, id) {
  const items = objects.items.filter((each) => each.id !== id);
  if (items.length === 0) return { items: [blank(objects.next)], active: objects.next, next: objects.next + 1 };
  const active = objects.active === id ? items[items.length - 1].id : objects.active;
  return { ...objects, items, active };
}

/**
 * Add objects whose masks no prompt made.
 * @param {Objects} objects
 * @param {ScoredMask[]} masks
 * @returns {Objects}
 */
export function withFound(objects, masks) {
  const kept = objects.items.filter((each) => !isBlank(each));
  const found = masks.map((mask, index) => ({ ...blank(objects.next + index), masks: [mask] }));
  const items = [...kept, ...found];
  if (items.length === 0) return objects;
  return { items, active: items[items.length - 1].id, next: objects.next + masks.length };
}

/**
 * Return the prompt of an item, as the service takes it.
 * @param {Item} each
 * @param {{refine: boolean, multimask: boolean}} options `refine` sends the chosen mask along.
 */
export function promptOf(each, { refine, multimask }) {
  const points = each.points.map(({ x, y }) => [x, y]);
  const labels = each.points.map(({ label }) => label);
  const mask = refine && each.box === null && points.length > 0 ? each.masks[each.chosen]?.mask : undefined;
  const ambiguous = points.length === 1 && each.box === null && mask === undefined;
  return {
    ...(points.length ? { points, labels } : {}),
    ...(each.box ? { box: each.box } : {}),
    ...(mask ? { mask } : {}),
    multimask: multimask || ambiguous,
  };
}

/** The states that there were: steps back and forth. */
export class History {
  /** @param {number} [most] steps that are kept. */
  constructor(most = 200) {
    this._most = most;
    this.reset();
  }

  reset() {
    /** @type {Objects[]} */
    this._past = [];
    /** @type {Objects[]} */
    this._future = [];
    this.now = NOTHING;
  }

  /** @param {Objects} objects the state after what the person did. */
  step(objects) {
    if (objects === this.now) return;
    this._past.push(this.now);
    if (this._past.length > this._most) this._past.shift();
    this._future = [];
    this.now = objects;
  }

  /** @param {Objects} objects the present state, with what arrived since: no step of its own. */
  amend(objects) {
    this.now = objects;
  }

  get canUndo() {
    return this._past.length > 0;
  }

  get canRedo() {
    return this._future.length > 0;
  }

  undo() {
    const before = this._past.pop();
    if (before === undefined) return false;
    this._future.push(this.now);
    this.now = before;
    return true;
  }

  redo() {
    const after = this._future.pop();
    if (after === undefined) return false;
    this._past.push(this.now);
    this.now = after;
    return true;
  }
}
