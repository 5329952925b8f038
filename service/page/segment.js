/** The view Segment: clicks and boxes on an image give masks, object by object. */

import { curlOf, pythonOfAutomatic, pythonOfSegment } from "./calls.js";
import { byId, make } from "./dom.js";
import { PALETTE } from "./exports.js";
import { announce, complain } from "./messages.js";
import { outlineOf } from "./outlines.js";
import * as prompts from "./prompts.js";
import { showResults } from "./results.js";

const EVERYTHING = { preset: "fast", min_area: 100 };
const EVERYTHING_MS = 45_000;
/* After which the service answers with what it has found. */

/** @param {number} id of an item. */
function colourOf(id) {
  return PALETTE[(id - 1) % PALETTE.length];
}

export class SegmentView {
  /**
   * @param {import("./service.js").Service} service
   * @param {import("./viewer.js").Viewer} viewer
   * @param {(text: string, busy?: boolean) => void} tell says in the image's corner what is going on.
   */
  constructor(service, viewer, tell) {
    this._service = service;
    this._viewer = viewer;
    this._tell = tell;
    /** @type {import("./opening.js").OpenedImage | null} */
    this._image = null;
    this._imageId = "";
    /** @type {Promise<void> | null} */
    this._embedding = null;
    this._history = new prompts.History();
    /** @type {Map<number, AbortController>} */
    this._running = new Map();
    /** @type {Map<object, Path2D>} */
    this._paths = new Map();
    this._active = false;
    this._model = byId("sam-model");
    this._tool = "include";
    this._wire();
    this._refreshResults = showResults(byId("segment-result"), () => this._result());
    this._refresh();
  }

  /**
   * Learn what the service has.
   * @param {any[]} models those that are loaded.
   * @param {Set<string>} operations names.
   */
  offer(models, operations) {
    const sams = models.filter((each) => each.family === "sam" || each.family === "sam2");
    this._model.replaceChildren(...sams.map(({ name }) => make("option", { value: name }, name)));
    byId("automatic").hidden = !operations.has("automatic");
    byId("no-sam").hidden = sams.length > 0;
  }

  /** @param {import("./opening.js").OpenedImage | null} image */
  open(image) {
    for (const each of this._running.values()) each.abort();
    this._image = image;
    this._imageId = "";
    this._embedding = null;
    this._history.reset();
    this._paths.clear();
    if (this._active) this.activate();
    this._refresh();
  }

  /** Take the image and what is done to it. */
  activate() {
    this._active = true;
    const viewer = this._viewer;
    viewer.show(this._image?.drawable ?? null);
    viewer.tool = /** @type {any} */ (this._tool);
    viewer.layers = [(ctx, scale) => this._draw(ctx, scale)];
    viewer.hands = {
      click: (x, y, background) => this._click(x, y, background),
      box: (box) => this._ask(prompts.withBox(this._history.now, /** @type {any} */ (box.map(tenth)))),
    };
    if (this._image !== null && this._embedding === null) this._embed().catch(complain);
  }

  deactivate() {
    this._active = false;
  }

  /**
   * @param {KeyboardEvent} event
   * @returns {boolean} whether the key was for this view.
   */
  key(event) {
    const control = event.ctrlKey || event.metaKey;
    if (control && event.key.toLowerCase() === "z") this._move(event.shiftKey ? "redo" : "undo");
    else if (control && event.key === "y") this._move("redo");
    else if (control || event.altKey) return false;
    else if (event.key === "z") this._move("undo");
    else if (event.key === "n") this._step(prompts.withAnother(this._history.now));
    else if ("123".includes(event.key)) this._choose(Number(event.key) - 1);
    else if (event.key === "Delete" || event.key === "Backspace") this._remove(this._history.now.active);
    else if (event.key === "a") this._useTool("include");
    else if (event.key === "x") this._useTool("exclude");
    else if (event.key === "p") this._useTool("pan");
    else return false;
    return true;
  }

  _wire() {
    byId("undo").addEventListener("click", () => this._move("undo"));
    byId("redo").addEventListener("click", () => this._move("redo"));
    byId("new-object").addEventListener("click", () => this._step(prompts.withAnother(this._history.now)));
    byId("clear").addEventListener("click", () => this._step(prompts.NOTHING));
    byId("automatic").addEventListener("click", () => this._findAll());
    for (const radio of document.querySelectorAll("input[name=tool]")) {
      radio.addEventListener("change", () => this._useTool(/** @type {HTMLInputElement} */ (radio).value));
    }
    for (const id of ["sam-model", "input-size"]) {
      byId(id).addEventListener("change", () => {
        this._embedding = null;
        if (this._image !== null) this._embed().catch(complain);
      });
    }
  }

  /** @param {string} tool */
  _useTool(tool) {
    this._tool = tool;
    if (this._active) this._viewer.tool = /** @type {any} */ (tool);
    for (const radio of document.querySelectorAll("input[name=tool]")) {
      const each = /** @type {HTMLInputElement} */ (radio);
      each.checked = each.value === tool;
    }
  }

  _options() {
    const size = byId("input-size").value;
    return {
      ...(this._model.value ? { model: this._model.value } : {}),
      ...(size ? { input_size: size === "auto" ? size : Number(size) } : {}),
    };
  }

  /** Let the service encode the image once, so that a click needs no more than its own milliseconds. */
  _embed() {
    const image = /** @type {import("./opening.js").OpenedImage} */ (this._image);
    this._tell("Preparing the image …", true);
    const embedding = (async () => {
      try {
        const answer = await this._service.post({
          operation: "embed",
          image: image.blob,
          imageName: image.name,
          request: this._options(),
        });
        if (this._image !== image) return;
        this._imageId = answer.image.id;
        const { width, height } = image.drawable;
        const ready = this._history.now === prompts.NOTHING;
        if (ready) this._tell(`${width} × ${height} · ready in ${Math.round(answer.timing_ms.total)} ms`);
      } catch (error) {
        if (this._image === image) {
          this._tell("");
          this._embedding = null;
        }
        throw error;
      }
    })();
    this._embedding = embedding;
    return embedding;
  }

  /**
   * @param {number} x
   * @param {number} y
   * @param {boolean} background
   */
  _click(x, y, background) {
    const point = { x: tenth(x), y: tenth(y), label: /** @type {0 | 1} */ (background ? 0 : 1) };
    this._ask(prompts.withPoint(this._history.now, point));
  }

  /**
   * Take a step whose active object needs new masks.
   * @param {import("./prompts.js").Objects} objects
   */
  async _ask(objects) {
    this._step(objects);
    const { active } = objects;
    this._running.get(active)?.abort();
    const running = new AbortController();
    this._running.set(active, running);
    const prompt = prompts.promptOf(prompts.item(objects), {
      refine: byId("refine").checked,
      multimask: byId("three").checked,
    });
    const began = performance.now();
    this._tell("Segmenting …", true);
    try {
      const answer = await this._segment(prompt, running.signal);
      const { masks } = answer.results[0];
      await this._keepPaths(masks.slice(0, 1)); // shown at once; the others are small images beside it
      if (running.signal.aborted || !prompts.item(this._history.now, active)) return;
      this._history.amend(prompts.changed(this._history.now, { masks, chosen: 0, asked: prompt }, active));
      const took = Math.round(performance.now() - began);
      this._tell(`${took} ms · model ${Math.round(answer.timing_ms.encode + answer.timing_ms.prompt)} ms`);
      this._viewer.redraw();
      this._say(masks[0]);
      await this._keepPaths(masks.slice(1));
    } catch (error) {
      if (!running.signal.aborted) this._tell("");
      complain(error);
    } finally {
      if (this._running.get(active) === running) this._running.delete(active);
    }
    this._refresh();
  }

  /**
   * Prompt the image by its id; send it again where the service has forgotten it.
   * @param {object} prompt
   * @param {AbortSignal} signal
   */
  async _segment(prompt, signal) {
    if (this._embedding === null) this._embed();
    await this._embedding;
    signal.throwIfAborted();
    const request = { ...this._options(), prompts: [prompt] };
    try {
      return await this._service.post({ operation: "segment", imageId: this._imageId, request, signal });
    } catch (error) {
      if (/** @type {any} */ (error).code !== "unknown_image_id") throw error;
      await this._embed();
      return await this._service.post({ operation: "segment", imageId: this._imageId, request, signal });
    }
  }

  /** Ask for the masks of everything in the image. */
  async _findAll() {
    const image = this._image;
    if (image === null) return;
    this._tell("Finding everything …", true);
    try {
      const answer = await this._service.post({
        operation: "automatic",
        image: image.blob,
        imageName: image.name,
        request: { ...this._options(), ...EVERYTHING },
        deadlineMs: EVERYTHING_MS,
      });
      const { masks } = answer;
      await this._keepPaths(masks);
      if (this._image !== image) return;
      this._step(prompts.withFound(this._history.now, masks));
      const partly = answer.degraded ? ", as far as time allowed" : "";
      this._tell(`${masks.length} objects${partly} · ${Math.round(answer.timing_ms.total)} ms`);
      announce(`${masks.length} objects found.`);
    } catch (error) {
      this._tell("");
      complain(error);
    }
  }

  /** @param {import("./prompts.js").ScoredMask[]} masks */
  async _keepPaths(masks) {
    const paths = await Promise.all(masks.map(({ mask }) => outlineOf(mask)));
    masks.forEach(({ mask }, index) => this._paths.set(mask, paths[index]));
  }

  /** @param {"undo" | "redo"} way */
  _move(way) {
    for (const each of this._running.values()) each.abort();
    if (this._history[way]()) {
      this._tell("");
      announce(way === "undo" ? "Undone." : "Done again.");
      this._refresh();
    }
  }

  /** @param {import("./prompts.js").Objects} objects */
  _step(objects) {
    this._history.step(objects);
    this._refresh();
  }

  /** @param {number} id */
  _remove(id) {
    this._running.get(id)?.abort();
    this._step(prompts.without(this._history.now, id));
    announce(`Object ${id} removed.`);
  }

  /** @param {number} chosen */
  _choose(chosen) {
    const { masks } = prompts.item(this._history.now);
    if (!masks[chosen]) return;
    this._step(prompts.changed(this._history.now, { chosen }));
    this._say(masks[chosen]);
  }

  /** @param {import("./prompts.js").ScoredMask} mask */
  _say({ area, score }) {
    announce(`Mask of ${area.toLocaleString("en")} pixels, score ${score.toFixed(2)}.`);
  }

  _refresh() {
    const objects = this._history.now;
    byId("undo").disabled = !this._history.canUndo;
    byId("redo").disabled = !this._history.canRedo;
    byId("new-object").disabled = prompts.isBlank(prompts.item(objects));
    byId("clear").disabled = objects.items.every(prompts.isBlank);
    this._listObjects(objects);
    this._showMasks(prompts.item(objects));
    this._refreshResults?.();
    if (this._active) this._viewer.redraw();
  }

  /** @param {import("./prompts.js").Objects} objects */
  _listObjects(objects) {
    const rows = objects.items.map((each) => {
      const mask = each.masks[each.chosen];
      const said = mask ? `${mask.area.toLocaleString("en")} px` : prompts.isBlank(each) ? "click it" : "…";
      const swatch = make("span", { className: "swatch" });
      swatch.style.background = `rgb(${colourOf(each.id).join(" ")})`;
      const pick = make(
        "button",
        { type: "button", className: "pick", "aria-pressed": String(each.id === objects.active) },
        swatch,
        make("span", {}, `Object ${each.id}`),
        make("span", { className: "quiet numbers" }, said),
      );
      pick.addEventListener("click", () => {
        this._history.amend({ ...this._history.now, active: each.id });
        this._refresh();
      });
      const row = make("li", each.id === objects.active ? { "data-active": "" } : {}, pick);
      if (!prompts.isBlank(each)) {
        const remove = { type: "button", className: "button small plain", "aria-label": `Remove object ${each.id}` };
        const button = make("button", remove, "✕");
        button.addEventListener("click", () => this._remove(each.id));
        row.append(button);
      }
      return row;
    });
    byId("objects").replaceChildren(...rows);
  }

  /** @param {import("./prompts.js").Item} each */
  _showMasks(each) {
    const several = each.masks.length > 1;
    byId("choice").hidden = !several;
    if (!several) return;
    const focused = document.activeElement?.getAttribute("name") === "mask";
    const options = each.masks.map((mask, index) => {
      const radio = make("input", { type: "radio", name: "mask", value: String(index), checked: index === each.chosen });
      radio.addEventListener("change", () => this._choose(index));
      const canvas = make("canvas", { width: 160, height: 120, role: "img", "aria-label": `Mask ${index + 1}` });
      this._drawThumbnail(canvas, mask, colourOf(each.id));
      return make("label", {}, radio, canvas, make("span", { className: "numbers" }, mask.score.toFixed(2)));
    });
    byId("masks").replaceChildren(...options);
    if (focused) options[each.chosen].querySelector("input").focus();
  }

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {import("./prompts.js").ScoredMask} mask
   * @param {number[]} colour
   */
  _drawThumbnail(canvas, mask, colour) {
    const path = this._paths.get(mask.mask);
    const drawable = this._image?.drawable;
    const boxes = prompts.item(this._history.now).masks.map((each) => each.box);
    if (!path || !drawable) return;
    const [x0, y0] = [Math.min(...boxes.map((box) => box[0])), Math.min(...boxes.map((box) => box[1]))];
    const [x1, y1] = [Math.max(...boxes.map((box) => box[2])), Math.max(...boxes.map((box) => box[3]))];
    const scale = 0.82 * Math.min(canvas.width / (x1 - x0 || 1), canvas.height / (y1 - y0 || 1));
    const ctx = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    ctx.translate(canvas.width / 2, canvas.height / 2);
    ctx.scale(scale, scale);
    ctx.translate(-(x0 + x1) / 2, -(y0 + y1) / 2);
    ctx.drawImage(drawable.small, 0, 0, drawable.width, drawable.height);
    paint(ctx, path, colour, scale, 0.55);
  }

  /**
   * @param {CanvasRenderingContext2D} ctx
   * @param {number} scale
   */
  _draw(ctx, scale) {
    const objects = this._history.now;
    for (const each of objects.items) {
      const path = this._paths.get(each.masks[each.chosen]?.mask);
      if (path) paint(ctx, path, colourOf(each.id), scale, each.id === objects.active ? 0.5 : 0.32);
    }
    drawPrompt(ctx, prompts.item(objects), scale);
  }

  /** @returns {import("./results.js").Result | null} */
  _result() {
    const items = this._history.now.items.filter((each) => each.masks.length > 0);
    const image = this._image;
    if (image === null || items.length === 0) return null;
    const { width, height } = image.drawable;
    const asked = items.map((each) => each.asked).filter((each) => each !== null);
    const key = this._service.key !== "";
    const request = asked.length ? { ...this._options(), prompts: asked } : { ...this._options(), ...EVERYTHING };
    return {
      image: { name: image.name, width, height },
      regions: items.map((each) => {
        const { mask, score, stability_score } = each.masks[each.chosen];
        return { mask, score, label: /** @type {const} */ ("object"), attributes: { stability_score } };
      }),
      curl: curlOf(asked.length ? "segment" : "automatic", image.name, request, { key }),
      python: asked.length ? pythonOfSegment(image.name, request) : pythonOfAutomatic(image.name, request),
    };
  }
}

/**
 * Fill and outline a mask.
 * @param {CanvasRenderingContext2D} ctx
 * @param {Path2D} path
 * @param {number[]} colour
 * @param {number} scale
 * @param {number} opacity
 */
export function paint(ctx, path, colour, scale, opacity) {
  ctx.fillStyle = `rgb(${colour.join(" ")} / ${opacity})`;
  ctx.fill(path, "evenodd");
  ctx.lineJoin = "round";
  ctx.lineWidth = 3.5 / scale;
  ctx.strokeStyle = "rgb(255 255 255 / 85%)";
  ctx.stroke(path);
  ctx.lineWidth = 2 / scale;
  ctx.strokeStyle = `rgb(${colour.join(" ")})`;
  ctx.stroke(path);
}

/**
 * @param {CanvasRenderingContext2D} ctx
 * @param {import("./prompts.js").Item} each
 * @param {number} scale
 */
function drawPrompt(ctx, { points, box }, scale) {
  if (box) {
    ctx.lineWidth = 3.5 / scale;
    ctx.strokeStyle = "#fff";
    ctx.strokeRect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
    ctx.lineWidth = 1.5 / scale;
    ctx.strokeStyle = "#1b1b1b";
    ctx.strokeRect(box[0], box[1], box[2] - box[0], box[3] - box[1]);
  }
  for (const { x, y, label } of points) {
    ctx.beginPath();
    ctx.arc(x, y, 7 / scale, 0, 2 * Math.PI);
    ctx.fillStyle = label ? "#0a7a4b" : "#c8301c";
    ctx.fill();
    ctx.lineWidth = 2 / scale;
    ctx.strokeStyle = "#fff";
    ctx.stroke();
    ctx.beginPath(); // a plus or a minus, so that no one depends on the colours
    ctx.moveTo(x - 3.5 / scale, y);
    ctx.lineTo(x + 3.5 / scale, y);
    if (label) {
      ctx.moveTo(x, y - 3.5 / scale);
      ctx.lineTo(x, y + 3.5 / scale);
    }
    ctx.stroke();
  }
}

/** @param {number} value */
function tenth(value) {
  return Math.round(value * 10) / 10;
}
