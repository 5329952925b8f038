/** The view Live: frames of a camera or of files are inspected at a rate, each over a deadline. */

import { byId, make } from "./dom.js";
import { openCamera, openFiles } from "./frames.js";
import { drawFruits, drawnFruits } from "./fruit-layer.js";
import { gradeColour, gradeNames } from "./grades.js";
import { announce, complain } from "./messages.js";
import { Plot } from "./plot.js";
import { Problem } from "./service.js";
import { drawableOf } from "./viewer.js";

const IN_FLIGHT = 4;
/* Frames that may be asked for at a time; those beyond are skipped, as a camera cannot wait. */

/** @typedef {{stop: AbortController, frames: import("./frames.js").Frames, timer: number, inFlight: number}} Running */

const COUNTS = ["answered", "late", "refused", "skipped"];

export class LiveView {
  /**
   * @param {import("./service.js").Service} service
   * @param {import("./viewer.js").Viewer} viewer
   * @param {(text: string, busy?: boolean) => void} tell says in the image's corner what is going on.
   */
  constructor(service, viewer, tell) {
    this._service = service;
    this._viewer = viewer;
    this._tell = tell;
    /** @type {import("./grades.js").Grade[]} */
    this._grades = [];
    /** @type {import("./viewer.js").Drawable | null} */
    this._picture = null;
    /** @type {import("./fruit-layer.js").DrawnFruit[]} */
    this._drawn = [];
    /** @type {Running | null} */
    this._running = null;
    this._active = false;
    const milliseconds = (/** @type {number} */ value) => `${Math.round(value)} ms`;
    const whole = (/** @type {number} */ value) => String(Math.round(value));
    this._latency = new Plot({ title: "Latency", write: milliseconds });
    this._fruits = new Plot({ title: "Fruits by grade", write: whole, stacked: true });
    this._outcomes = new Plot({ title: "Late, refused and skipped frames", write: whole });
    byId("live-plots").append(this._latency.element, this._fruits.element, this._outcomes.element);
    this._reset();
    byId("live-camera").addEventListener("click", () => this._start(openCamera));
    byId("live-stop").addEventListener("click", () => this._stop());
    for (const input of document.querySelectorAll("input[data-frames]")) {
      const chosen = /** @type {HTMLInputElement} */ (input);
      chosen.addEventListener("change", () => {
        const files = [...(chosen.files ?? [])];
        chosen.value = "";
        if (files.length) this._start(async () => openFiles(files));
      });
    }
    byId("live-rate").addEventListener("change", () => this._tick());
  }

  /**
   * @param {any[]} models those that are loaded.
   * @param {import("./grades.js").Grade[]} grades
   */
  offer(models, grades) {
    this._grades = grades;
    const unets = models.filter((each) => each.family === "unet");
    byId("live-model").replaceChildren(...unets.map(({ name }) => make("option", { value: name }, name)));
  }

  activate() {
    this._active = true;
    this._viewer.tool = "pan";
    this._viewer.hands = {};
    this._viewer.layers = [
      (ctx, scale) => drawFruits(ctx, scale, this._drawn, this._grades, 0),
    ];
    this._viewer.show(this._picture);
  }

  /** Stop: what is not seen should not keep the camera on and the service busy. */
  deactivate() {
    this._active = false;
    this._stop();
  }

  /** @returns {boolean} */
  key() {
    return false;
  }

  /** @param {() => Promise<import("./frames.js").Frames>} open */
  async _start(open) {
    this._stop();
    try {
      const frames = await open();
      this._stop();
      if (!this._active) {
        frames.close();
        return;
      }
      this._reset();
      this._running = { stop: new AbortController(), frames, timer: 0, inFlight: 0 };
      byId("live-stop").disabled = false;
      announce("Live inspection has begun.");
      this._tick();
    } catch (error) {
      complain(error);
    }
  }

  _stop() {
    if (this._running === null) return;
    this._running.stop.abort();
    this._running.frames.close();
    clearInterval(this._running.timer);
    this._running = null;
    byId("live-stop").disabled = true;
    announce("Live inspection has stopped.");
  }

  _reset() {
    this._counts = { answered: 0, late: 0, refused: 0, skipped: 0 };
    this._shown = 0;
    this._number = 0;
    for (const plot of [this._latency, this._fruits, this._outcomes]) plot.clear();
    this._count();
  }

  /** Ask at the chosen rate from now on. */
  _tick() {
    const running = this._running;
    if (running === null) return;
    clearInterval(running.timer);
    const rate = Math.min(30, Math.max(0.2, Number(byId("live-rate").value) || 1));
    running.timer = setInterval(() => this._ask(running), 1000 / rate);
    this._ask(running);
  }

  /** @param {Running} running */
  async _ask(running) {
    if (running.inFlight >= IN_FLIGHT) {
      this._count("skipped");
      return;
    }
    running.inFlight++;
    const number = ++this._number;
    const deadlineMs = Number(byId("live-deadline").value) || 0;
    let bitmap = null;
    try {
      const frame = await running.frames.next();
      bitmap = frame.bitmap;
      const began = performance.now();
      const model = byId("live-model").value;
      const answer = await this._service.post({
        operation: "inspect",
        image: frame.blob,
        imageName: frame.name,
        request: { mode: byId("live-mode").value, frame_id: `page-${number}`, ...(model ? { model } : {}) },
        deadlineMs,
        signal: running.stop.signal,
      });
      const took = performance.now() - began;
      const drawn = await drawnFruits(answer.fruits);
      if (running.stop.signal.aborted) return;
      this._count(deadlineMs && took > deadlineMs ? "late" : "answered");
      this._plot(took, deadlineMs, answer.fruits);
      if (number > this._shown) {
        this._shown = number;
        await this._show(bitmap, drawn);
        bitmap = null;
        this._tell(`${answer.fruits.length} fruits · ${Math.round(took)} ms · mode ${answer.mode}${answer.degraded ? ", degraded" : ""}`);
      }
    } catch (error) {
      this._failed(error, running);
    } finally {
      bitmap?.close();
      running.inFlight--;
    }
  }

  /**
   * @param {unknown} error
   * @param {Running} running
   */
  _failed(error, running) {
    if (running.stop.signal.aborted) return;
    if (error instanceof Problem && error.late) this._count("late");
    else if (error instanceof Problem && error.code === "overloaded") this._count("refused");
    else {
      complain(error);
      this._stop();
    }
  }

  /**
   * @param {ImageBitmap} bitmap
   * @param {import("./fruit-layer.js").DrawnFruit[]} drawn
   */
  async _show(bitmap, drawn) {
    const before = this._picture;
    this._picture = await drawableOf(bitmap);
    this._drawn = drawn;
    if (this._active) this._viewer.show(this._picture);
    if (before?.small !== before?.bitmap) before?.small.close();
    before?.bitmap.close();
  }

  /** @param {string} [outcome] of one more frame. */
  _count(outcome) {
    const counts = /** @type {Record<string, number>} */ (this._counts);
    if (outcome) counts[outcome]++;
    byId("live-counts").replaceChildren(
      ...COUNTS.map((name) => make("div", {}, make("dt", {}, name), make("dd", {}, String(counts[name])))),
    );
    if (outcome) this._outcomes.add({ late: counts.late, refused: counts.refused, skipped: counts.skipped });
  }

  /**
   * @param {number} took
   * @param {number} deadlineMs
   * @param {any[]} fruits
   */
  _plot(took, deadlineMs, fruits) {
    this._latency.limit = deadlineMs || null;
    this._latency.add({ "": took });
    const names = gradeNames(this._grades, fruits.map((each) => each.grade));
    const counts = names.map((name) => [name, fruits.filter((each) => each.grade === name).length]);
    const colours = names.map((name) => [name, `rgb(${gradeColour(this._grades, name).join(" ")})`]);
    this._fruits.add(Object.fromEntries(counts), Object.fromEntries(colours));
  }
}
