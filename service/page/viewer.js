/** An image on a canvas that can be moved and enlarged, with layers drawn over it, and what is done to it by hand. */

const SMALL_SIDE = 2048;
const MOST_SCALE = 32;
const DRAG_FROM = 5;
const KEY_STEP = 12;

/**
 * @typedef {object} Drawable an image ready to be drawn.
 * @property {ImageBitmap} bitmap
 * @property {ImageBitmap} small the same, at most SMALL_SIDE wide and high.
 * @property {number} width of the image, in pixels.
 * @property {number} height
 *
 * @typedef {object} Hands what happens when the person does something, in pixels of the image.
 * @property {(x: number, y: number, background: boolean) => void} [click]
 * @property {(box: [number, number, number, number]) => void} [box]
 * @property {(key: string, at: [number, number]) => boolean} [key] returns whether it used the key.
 *
 * @typedef {(ctx: CanvasRenderingContext2D, scale: number) => void} Layer draws in pixels of the image.
 */

/**
 * Prepare a bitmap for a viewer.
 * @param {ImageBitmap} bitmap
 * @returns {Promise<Drawable>}
 */
export async function drawableOf(bitmap) {
  const { width, height } = bitmap;
  const shrink = SMALL_SIDE / Math.max(width, height);
  const small =
    shrink >= 1
      ? bitmap
      : await createImageBitmap(bitmap, {
          resizeWidth: Math.max(1, Math.round(width * shrink)),
          resizeHeight: Math.max(1, Math.round(height * shrink)),
          resizeQuality: "medium",
        });
  return { bitmap, small, width, height };
}

export class Viewer {
  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.canvas = canvas;
    /** @type {Drawable | null} */
    this.drawable = null;
    /** @type {Layer[]} */
    this.layers = [];
    /** @type {Hands} */
    this.hands = {};
    this.scale = 1;
    this._x = 0;
    this._y = 0;
    this._tool = "pan";
    this._fitted = true;
    this._drawing = 0;
    /** @type {[number, number] | null} */
    this._cursor = null;
    /** @type {[number, number] | null} */
    this._corner = null;
    /** @type {Map<number, {x: number, y: number}>} */
    this._fingers = new Map();
    /** @type {any} */
    this._drag = null;
    this.onMove = () => {};
    new ResizeObserver(() => this._resize()).observe(canvas);
    canvas.addEventListener("wheel", (event) => this._wheel(event), { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => this._down(event));
    canvas.addEventListener("pointermove", (event) => this._move(event));
    canvas.addEventListener("pointerup", (event) => this._up(event));
    canvas.addEventListener("pointercancel", (event) => this._cancel(event));
    canvas.addEventListener("keydown", (event) => this._key(event));
    canvas.addEventListener("blur", () => this._setCursor(null));
    this._resize();
  }

  /** @param {"include" | "exclude" | "pan"} tool what clicking and dragging does. */
  set tool(tool) {
    this._tool = tool;
    this.canvas.dataset.tool = tool;
  }

  get tool() {
    return /** @type {any} */ (this._tool);
  }

  /**
   * Show another image, or none; where it has the size of the one before, the view stays.
   * @param {Drawable | null} drawable
   */
  show(drawable) {
    const same = drawable !== null && this.drawable?.width === drawable.width && this.drawable.height === drawable.height;
    this.drawable = drawable;
    this._cursor = null;
    if (same) this.redraw();
    else this.fit();
  }

  /** Show all of the image. */
  fit() {
    this._fitted = true;
    if (this.drawable !== null) {
      const { width, height } = this.canvas;
      const margin = 0.97;
      this.scale = Math.min((width * margin) / this.drawable.width, (height * margin) / this.drawable.height) || 1;
      this._x = (width - this.drawable.width * this.scale) / 2;
      this._y = (height - this.drawable.height * this.scale) / 2;
    }
    this.redraw();
  }

  /**
   * Bring a box of the image into view, with some of what is around it.
   * @param {[number, number, number, number]} box
   */
  focus([x0, y0, x1, y1]) {
    const { width, height } = this.canvas;
    this.scale = Math.min(width / (x1 - x0), height / (y1 - y0), 4 * MOST_SCALE) / 2.2;
    this._x = width / 2 - ((x0 + x1) / 2) * this.scale;
    this._y = height / 2 - ((y0 + y1) / 2) * this.scale;
    this._fitted = false;
    this.redraw();
  }

  /**
   * Enlarge the image.
   * @param {number} factor
   * @param {[number, number]} [at] what stays in place, in pixels of the canvas; by default its centre.
   */
  zoom(factor, at = [this.canvas.width / 2, this.canvas.height / 2]) {
    if (this.drawable === null) return;
    const fit = Math.min(this.canvas.width / this.drawable.width, this.canvas.height / this.drawable.height);
    const scale = Math.min(MOST_SCALE, Math.max(Math.min(fit, 1) / 3, this.scale * factor));
    const change = scale / this.scale;
    this._x = at[0] - (at[0] - this._x) * change;
    this._y = at[1] - (at[1] - this._y) * change;
    this.scale = scale;
    this._fitted = false;
    this.redraw();
  }

  /** Draw again before the next frame of the screen. */
  redraw() {
    this._drawing ||= requestAnimationFrame(() => {
      this._drawing = 0;
      this._draw();
    });
  }

  /** How many pixels of the canvas a pixel of the page has. */
  get density() {
    return this.canvas.clientWidth ? this.canvas.width / this.canvas.clientWidth : 1;
  }

  /**
   * Return where a point of the image is on the page.
   * @param {number} x
   * @param {number} y
   * @returns {[number, number]}
   */
  toPage(x, y) {
    const { left, top } = this.canvas.getBoundingClientRect();
    return [left + (this._x + x * this.scale) / this.density, top + (this._y + y * this.scale) / this.density];
  }

  /**
   * Return what of the image's plane is seen, and where a vertical line through the canvas lies in it.
   * @param {number} share of the canvas's width that is left of the line.
   */
  split(share) {
    const { width, height } = this.canvas;
    const [left, top] = [-this._x / this.scale, -this._y / this.scale];
    const [right, bottom] = [left + width / this.scale, top + height / this.scale];
    return { x: left + share * (right - left), left, right, top, bottom };
  }

  _draw() {
    const ctx = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.clearRect(0, 0, this.canvas.width, this.canvas.height);
    if (this.drawable === null) return;
    const { bitmap, small, width, height } = this.drawable;
    const enough = this.scale * width <= small.width;
    ctx.imageSmoothingEnabled = this.scale < 4;
    ctx.setTransform(this.scale, 0, 0, this.scale, this._x, this._y);
    ctx.drawImage(enough ? small : bitmap, 0, 0, width, height);
    for (const layer of this.layers) {
      ctx.save();
      layer(ctx, this.scale / this.density);
      ctx.restore();
    }
    this._drawHands(ctx, this.scale / this.density);
  }

  /**
   * @param {CanvasRenderingContext2D} ctx
   * @param {number} scale
   */
  _drawHands(ctx, scale) {
    const box = this._drag?.box ?? (this._corner && this._cursor ? boxOf(this._corner, this._cursor) : null);
    if (box) {
      const [x0, y0, x1, y1] = box;
      ctx.setLineDash([6 / scale, 4 / scale]);
      for (const [colour, offset] of [["#000", 0], ["#fff", 5]]) {
        ctx.strokeStyle = /** @type {string} */ (colour);
        ctx.lineDashOffset = /** @type {number} */ (offset) / scale;
        ctx.lineWidth = 1.5 / scale;
        ctx.strokeRect(x0, y0, x1 - x0, y1 - y0);
      }
      ctx.setLineDash([]);
    }
    if (this._cursor) {
      const [x, y] = this._cursor;
      for (const [colour, width] of [["#000", 4], ["#fff", 2]]) {
        ctx.strokeStyle = /** @type {string} */ (colour);
        ctx.lineWidth = /** @type {number} */ (width) / scale;
        ctx.beginPath();
        for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
          ctx.moveTo(x + (4 * dx) / scale, y + (4 * dy) / scale);
          ctx.lineTo(x + (16 * dx) / scale, y + (16 * dy) / scale);
        }
        ctx.stroke();
      }
    }
  }

  _resize() {
    const density = Math.min(devicePixelRatio || 1, 2);
    const [width, height] = [this.canvas.clientWidth * density, this.canvas.clientHeight * density].map(Math.round);
    if (!width || !height) return;
    const before = [this.canvas.width, this.canvas.height];
    if (before[0] !== width || before[1] !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
      this._x += (width - before[0]) / 2;
      this._y += (height - before[1]) / 2;
    }
    if (this._fitted) this.fit();
    this._draw();
  }

  /**
   * @param {{clientX: number, clientY: number}} event
   * @returns {[number, number]} in pixels of the canvas.
   */
  _onCanvas(event) {
    const { left, top } = this.canvas.getBoundingClientRect();
    return [(event.clientX - left) * this.density, (event.clientY - top) * this.density];
  }

  /**
   * @param {[number, number]} at in pixels of the canvas.
   * @returns {[number, number]} in pixels of the image, inside it.
   */
  _onImage([x, y]) {
    const { width, height } = /** @type {Drawable} */ (this.drawable);
    return [clamp((x - this._x) / this.scale, width - 0.5), clamp((y - this._y) / this.scale, height - 0.5)];
  }

  /** @param {WheelEvent} event */
  _wheel(event) {
    if (this.drawable === null) return;
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    this.zoom(Math.exp((-event.deltaY * lines) / (event.ctrlKey ? 120 : 480)), this._onCanvas(event));
  }

  /** @param {PointerEvent} event */
  _down(event) {
    if (this.drawable === null) return;
    this._setCursor(null);
    this.canvas.setPointerCapture(event.pointerId);
    const [x, y] = this._onCanvas(event);
    this._fingers.set(event.pointerId, { x, y });
    if (this._fingers.size > 1) {
      this._drag = { pinch: this._spread(), moved: true };
      return;
    }
    const pans = this.tool === "pan" || event.button === 1 || event.shiftKey;
    this._drag = { x, y, at: [x, y], pans, moved: false, box: null };
  }

  /** @param {PointerEvent} event */
  _move(event) {
    if (this.drawable === null) return;
    const [x, y] = this._onCanvas(event);
    const finger = this._fingers.get(event.pointerId);
    if (finger === undefined || this._drag === null) {
      const at = this._onImage([x, y]);
      this.onMove(Math.floor(at[0]), Math.floor(at[1]));
      return;
    }
    Object.assign(finger, { x, y });
    const drag = this._drag;
    if (drag.pinch) {
      if (this._fingers.size < 2) return;
      const now = this._spread();
      this._x += now.x - drag.pinch.x;
      this._y += now.y - drag.pinch.y;
      this.zoom(now.length / drag.pinch.length, [now.x, now.y]);
      drag.pinch = now;
      return;
    }
    drag.moved ||= Math.hypot(x - drag.x, y - drag.y) > DRAG_FROM * this.density;
    if (!drag.moved) return;
    if (drag.pans) {
      this._x += x - drag.at[0];
      this._y += y - drag.at[1];
      this._fitted = false;
    } else if (event.buttons !== 2) {
      drag.box = boxOf(this._onImage([drag.x, drag.y]), this._onImage([x, y]));
    }
    drag.at = [x, y];
    this.redraw();
  }

  /** @param {PointerEvent} event */
  _up(event) {
    const drag = this._drag;
    this._cancel(event);
    if (drag === null || drag.pinch || this.drawable === null) return;
    if (drag.box && this.hands.box) this.hands.box(drag.box);
    else if (!drag.moved && event.button !== 1) {
      const inside = this._inside([drag.x, drag.y]);
      const background = this.tool === "exclude" || event.altKey || event.button === 2;
      if (inside) this.hands.click?.(...this._onImage([drag.x, drag.y]), background);
    }
  }

  /** @param {PointerEvent} event */
  _cancel(event) {
    this._fingers.delete(event.pointerId);
    if (this._fingers.size === 0) this._drag = null;
    this.redraw();
  }

  _spread() {
    const [a, b] = [...this._fingers.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, length: Math.max(1, Math.hypot(a.x - b.x, a.y - b.y)) };
  }

  /** @param {[number, number]} at in pixels of the canvas. */
  _inside([x, y]) {
    const { width, height } = /** @type {Drawable} */ (this.drawable);
    const [px, py] = [(x - this._x) / this.scale, (y - this._y) / this.scale];
    return px >= 0 && py >= 0 && px < width && py < height;
  }

  /** @param {KeyboardEvent} event */
  _key(event) {
    if (this.drawable === null || event.ctrlKey || event.metaKey) return;
    const { width, height } = this.drawable;
    const cursor = this._cursor ?? /** @type {[number, number]} */ ([width / 2, height / 2]);
    const step = (event.shiftKey ? 1 : KEY_STEP) / (this.scale / this.density);
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const move = moves[/** @type {keyof typeof moves} */ (event.key)];
    if (move) {
      const [dx, dy] = this._cursor ? move : [0, 0];
      this._setCursor([clamp(cursor[0] + dx * step, width - 0.5), clamp(cursor[1] + dy * step, height - 0.5)]);
      this.onMove(...this._cursor.map(Math.floor));
    } else if (event.key === "Enter" && this._cursor && this._corner) {
      const box = boxOf(this._corner, this._cursor);
      this._corner = null;
      if (box[2] > box[0] && box[3] > box[1]) this.hands.box?.(box);
    } else if (event.key === "Enter" && this._cursor) {
      this.hands.click?.(...this._cursor, event.altKey || this.tool === "exclude");
    } else if (event.key === "b" && this._cursor && this.hands.box) this._corner = this._corner ? null : this._cursor;
    else if (event.key === "Escape" && (this._cursor || this._corner)) this._setCursor(null);
    else if (event.key === "+" || event.key === "=") this.zoom(1.3);
    else if (event.key === "-") this.zoom(1 / 1.3);
    else if (event.key === "0") this.fit();
    else return;
    event.preventDefault();
    event.stopPropagation();
    this.redraw();
  }

  /** @param {[number, number] | null} cursor */
  _setCursor(cursor) {
    if (cursor === null) this._corner = null;
    this._cursor = cursor;
    this.redraw();
  }
}

/**
 * @param {number} value
 * @param {number} most
 */
function clamp(value, most) {
  return Math.min(most, Math.max(0, value));
}

/**
 * Return the box between two corners.
 * @param {[number, number]} a
 * @param {[number, number]} b
 * @returns {[number, number, number, number]}
 */
function boxOf(a, b) {
  return [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
}
