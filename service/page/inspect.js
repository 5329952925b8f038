/** The view Inspect: every fruit of an image, its infected part and its grade; two answers side by side. */

import { curlOf, pythonOfInspect } from "./calls.js";
import { byId, make, settled } from "./dom.js";
import { regionsOfFruit } from "./exports.js";
import { drawFruits, drawnFruits } from "./fruit-layer.js";
import { FruitTable } from "./fruit-table.js";
import { gradeNames, gradeOf, showSliders } from "./grades.js";
import { announce, complain } from "./messages.js";
import { showResults } from "./results.js";

const SETTLED_MS = 250;

/** @typedef {{answer: any, drawn: import("./fruit-layer.js").DrawnFruit[], request: object, deadlineMs: number}} Inspection */

export class InspectView {
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
    /** @type {Inspection | null} */
    this._first = null;
    /** @type {Inspection | null} */
    this._second = null;
    /** @type {import("./grades.js").Grade[]} of the service. */
    this._given = [];
    /** @type {import("./grades.js").Grade[]} */
    this._grades = [];
    this._ownGrades = false;
    this._chosen = 0;
    this._active = false;
    this._running = new AbortController();
    this._table = new FruitTable(byId("fruits"), (id) => this._pick(id, true));
    this._refreshResults = showResults(byId("inspect-result"), () => this._result());
    this._wire();
  }

  /**
   * Learn what the service has.
   * @param {any[]} models those that are loaded.
   * @param {import("./grades.js").Grade[]} grades by default.
   */
  offer(models, grades) {
    const unets = models.filter((each) => each.family === "unet").map((each) => each.name);
    const hasSam = models.some((each) => each.family === "sam");
    byId("unet-model").replaceChildren(...unets.map((name) => make("option", { value: name }, name)));
    byId("no-unet").hidden = unets.length > 0;
    for (const each of byId("inspect-mode").options) each.disabled = each.value === "accurate" && !hasSam;
    const modes = hasSam ? ["fast", "accurate"] : [];
    const others = [
      ...modes.map((mode) => ({ text: `this model, mode ${mode}`, value: { mode } })),
      ...unets.map((model) => ({ text: model, value: { model } })),
    ];
    byId("compare").replaceChildren(
      make("option", { value: "" }, "nothing"),
      ...others.map(({ text, value }) => make("option", { value: JSON.stringify(value) }, text)),
    );
    this._given = grades;
    if (!this._ownGrades) this._useGrades(grades);
  }

  /** @param {import("./opening.js").OpenedImage | null} image */
  open(image) {
    this._running.abort();
    this._image = image;
    this._first = this._second = null;
    this._chosen = 0;
    this._refresh();
    if (this._active) this.activate();
  }

  /** Take the image and what is done to it. */
  activate() {
    this._active = true;
    const viewer = this._viewer;
    viewer.show(this._image?.drawable ?? null);
    viewer.tool = "pan";
    viewer.layers = [(ctx, scale) => this._draw(ctx, scale)];
    viewer.hands = { click: (x, y) => this._pickAt(x, y) };
    byId("swipe").hidden = this._second === null;
    if (this._image !== null && this._first === null) this._inspect();
  }

  deactivate() {
    this._active = false;
    byId("swipe").hidden = true;
  }

  /** @returns {boolean} */
  key() {
    return false;
  }

  _wire() {
    const again = () => this._image !== null && this._inspect();
    for (const id of ["unet-model", "inspect-mode", "compare"]) byId(id).addEventListener("change", again);
    byId("deadline").addEventListener("input", settled(again, 2 * SETTLED_MS));
    byId("inspect-again").addEventListener("click", again);
    byId("swipe-at").addEventListener("input", () => this._viewer.redraw());
    byId("grades-reset").addEventListener("click", () => {
      this._ownGrades = false;
      this._useGrades(this._given);
      again();
    });
  }

  /** @param {import("./grades.js").Grade[]} grades */
  _useGrades(grades) {
    this._grades = grades;
    byId("grades-reset").disabled = !this._ownGrades;
    showSliders(byId("grades"), grades, (moved, settledNow) => {
      this._ownGrades = true;
      this._grades = moved;
      byId("grades-reset").disabled = false;
      if (settledNow && this._image !== null) this._inspect();
      else this._gradeAgain();
    });
  }

  /** Show at once what the service will say for the moved limits. */
  _gradeAgain() {
    for (const each of [this._first, this._second]) {
      for (const drawn of each?.drawn ?? []) {
        drawn.fruit = { ...drawn.fruit, grade: gradeOf(this._grades, drawn.fruit.infected_fraction) };
      }
    }
    this._refresh();
  }

  async _inspect() {
    this._running.abort();
    const running = (this._running = new AbortController());
    const image = /** @type {import("./opening.js").OpenedImage} */ (this._image);
    const deadlineMs = Number(byId("deadline").value) || 0;
    const model = byId("unet-model").value;
    const first = {
      mode: byId("inspect-mode").value,
      ...(model ? { model } : {}),
      ...(this._ownGrades ? { grades: this._grades } : {}),
    };
    const other = byId("compare").value;
    this._tell("Inspecting …", true);
    try {
      const ask = async (/** @type {object} */ request) => {
        const call = { operation: "inspect", image: image.blob, imageName: image.name, request, deadlineMs };
        const answer = await this._service.post({ ...call, signal: running.signal });
        return { answer, drawn: await drawnFruits(answer.fruits), request, deadlineMs };
      };
      const one = await ask(first);
      const two = other ? await ask({ ...first, ...JSON.parse(other) }) : null;
      if (running.signal.aborted) return;
      [this._first, this._second] = [one, two];
      const { answer } = one;
      this._tell(`${answer.image.width} × ${answer.image.height} · ${Math.round(answer.timing_ms.total)} ms · mode ${answer.mode}`);
      announce(`${answer.fruits.length} fruits found.`);
    } catch (error) {
      if (!running.signal.aborted) {
        this._tell("");
        [this._first, this._second] = [null, null];
      }
      complain(error);
    }
    this._refresh();
  }

  _refresh() {
    const first = this._first;
    const fruits = first?.drawn.map((each) => each.fruit) ?? [];
    byId("inspected").hidden = first === null;
    byId("degraded").hidden = !first?.answer.degraded;
    byId("degraded").textContent = first?.answer.reason ? `Degraded: ${first.answer.reason}` : "Degraded.";
    byId("tally").replaceChildren(...this._tally(fruits));
    this._table.show(fruits, this._grades, this._chosen);
    byId("swipe").hidden = this._second === null || !this._active;
    byId("compared").hidden = this._second === null;
    if (first && this._second) this._compare(first, this._second);
    this._refreshResults?.();
    if (this._active) this._viewer.redraw();
  }

  /** @param {any[]} fruits */
  _tally(fruits) {
    const counts = gradeNames(this._grades, fruits.map((each) => each.grade)).map((name) => ({
      name,
      count: fruits.filter((each) => each.grade === name).length,
    }));
    const total = make("strong", {}, `${fruits.length} ${fruits.length === 1 ? "fruit" : "fruits"}`);
    return [
      make("span", {}, total),
      ...counts.filter(({ count }) => count).map(({ name, count }) => make("span", {}, `${name}: ${count}`)),
    ];
  }

  /**
   * @param {Inspection} one
   * @param {Inspection} two
   */
  _compare(one, two) {
    const names = [one, two].map(({ answer }) => `${answer.models.unet.name}, ${answer.mode}`);
    [byId("swipe-left").textContent, byId("swipe-right").textContent] = names;
    const infected = (/** @type {Inspection} */ { answer }) =>
      answer.fruits.filter((/** @type {any} */ each) => each.class === "infected").length;
    const row = (/** @type {string} */ what, /** @type {(each: Inspection) => string | number} */ of) =>
      make("tr", {}, make("th", { scope: "row" }, what), make("td", {}, String(of(one))), make("td", {}, String(of(two))));
    byId("compared").replaceChildren(
      make("table", { className: "numbers" },
        make("thead", {}, make("tr", {}, make("td"), make("th", { scope: "col" }, "left"), make("th", { scope: "col" }, "right"))),
        make("tbody", {},
          row("model", ({ answer }) => answer.models.unet.name),
          row("mode", ({ answer }) => answer.mode),
          row("fruits", ({ answer }) => answer.fruits.length),
          row("infected", infected),
          row("milliseconds", ({ answer }) => Math.round(answer.timing_ms.total)),
        ),
      ),
    );
  }

  /**
   * @param {number} x
   * @param {number} y
   */
  _pickAt(x, y) {
    const ctx = /** @type {CanvasRenderingContext2D} */ (document.createElement("canvas").getContext("2d"));
    const hit = this._first?.drawn.find(({ whole }) => ctx.isPointInPath(whole, x, y, "evenodd"));
    this._pick(hit?.fruit.id ?? 0, false);
  }

  /**
   * @param {number} id
   * @param {boolean} focus
   */
  _pick(id, focus) {
    this._chosen = id;
    const fruit = this._first?.drawn.find((each) => each.fruit.id === id)?.fruit;
    if (fruit && focus) this._viewer.focus(fruit.box);
    if (fruit) announce(`Fruit ${id}, grade ${fruit.grade}.`);
    this._refresh();
  }

  /**
   * @param {CanvasRenderingContext2D} ctx
   * @param {number} scale
   */
  _draw(ctx, scale) {
    if (this._first === null) return;
    if (this._second === null) {
      drawFruits(ctx, scale, this._first.drawn, this._grades, this._chosen);
      return;
    }
    const { x, left, right, top, bottom } = this._viewer.split(Number(byId("swipe-at").value) / 1000);
    for (const [inspection, from, to] of /** @type {const} */ ([[this._first, left, x], [this._second, x, right]])) {
      ctx.save();
      ctx.beginPath();
      ctx.rect(from, top, to - from, bottom - top);
      ctx.clip();
      drawFruits(ctx, scale, inspection.drawn, this._grades, this._chosen);
      ctx.restore();
    }
    for (const [colour, width] of /** @type {const} */ ([["#000", 4], ["#fff", 2]])) {
      ctx.fillStyle = colour;
      ctx.fillRect(x - width / 2 / scale, top, width / scale, bottom - top);
    }
  }

  /** @returns {import("./results.js").Result | null} */
  _result() {
    const [image, first] = [this._image, this._first];
    if (image === null || first === null) return null;
    const { request, deadlineMs } = first;
    return {
      image: { name: image.name, width: image.drawable.width, height: image.drawable.height },
      regions: first.drawn.flatMap(({ fruit }) => regionsOfFruit(fruit)),
      curl: curlOf("inspect", image.name, request, { deadlineMs, key: this._service.key !== "" }),
      python: pythonOfInspect(image.name, request, deadlineMs),
    };
  }
}
