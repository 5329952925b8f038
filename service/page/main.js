/** The page: its views, the image that they share, the service's state, keys and colours. */

import { byId } from "./dom.js";
import { InspectView } from "./inspect.js";
import { LiveView } from "./live.js";
import { clearMessages, complain } from "./messages.js";
import { MetricsView } from "./metrics.js";
import { takeImages } from "./opening.js";
import { SegmentView } from "./segment.js";
import { Service } from "./service.js";
import { Viewer } from "./viewer.js";

const NAMES = ["segment", "inspect", "live", "metrics"];
const THEMES = ["system", "light", "dark"];
const STORED_THEME = "pomona.theme";
const ASK_EVERY_MS = { ready: 10_000, loading: 1500, away: 3000 };

const service = new Service(askForKey);
const canvas = byId("canvas");
const viewer = new Viewer(canvas);
/** @type {Record<string, any>} */
const views = {
  segment: new SegmentView(service, viewer, tell),
  inspect: new InspectView(service, viewer, tell),
  live: new LiveView(service, viewer, tell),
  metrics: new MetricsView(service),
};
let current = "";
let opened = false;
let offered = false;

/**
 * Say in the image's corner what is going on.
 * @param {string} text
 * @param {boolean} [busy]
 */
function tell(text, busy = false) {
  const chip = byId("outcome");
  chip.textContent = text;
  chip.hidden = text === "";
  chip.classList.toggle("busy", busy);
}

/** @param {string} name of a view. */
function choose(name) {
  if (name === current) return;
  views[current]?.deactivate();
  current = name;
  tell("");
  for (const each of NAMES) {
    const tab = byId(`tab-${each}`);
    tab.setAttribute("aria-selected", String(each === name));
    tab.tabIndex = each === name ? 0 : -1;
    byId(each).hidden = each !== name;
  }
  byId("main").dataset.view = name;
  byId("tools").hidden = name !== "segment";
  showStage();
  views[name].activate();
  history.replaceState(null, "", `#view=${name}`); // not an element's id: browsers would scroll to it
}

/** Show the image, or how to bring one in. */
function showStage() {
  const shown = opened || current === "live";
  byId("welcome").hidden = shown;
  byId("stage").classList.toggle("empty", !shown);
  byId("stage-top").hidden = !opened || current === "live";
  for (const each of [canvas, byId("zooming")]) each.hidden = !shown;
}

/** @param {import("./opening.js").OpenedImage} image */
function open(image) {
  clearMessages();
  opened = true;
  canvas.setAttribute("aria-label", `Image ${image.name}`);
  showStage();
  views.segment.open(image);
  views.inspect.open(image);
  canvas.focus({ preventScroll: true });
}

/** @returns {Promise<string | null>} the key that the person enters; null where they enter none. */
function askForKey() {
  const dialog = byId("key-dialog");
  byId("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const done = () => resolve(dialog.returnValue === "use" && byId("key").value.trim() ? byId("key").value.trim() : null);
    dialog.addEventListener("close", done, { once: true });
  });
}

/** Follow whether the service is ready, and learn once what it has. */
async function follow() {
  const state = await service.state();
  const badge = byId("state");
  const said = { ready: "ready", loading: "models are loading", away: "out of reach" }[state];
  if (badge.textContent !== said) badge.textContent = said;
  badge.dataset.state = state;
  if (state !== "ready") offered = false;
  else if (!offered) {
    offered = true;
    await learn().catch(complain);
  }
  setTimeout(follow, ASK_EVERY_MS[state]);
}

/** Learn which operations and models the service has, and its grades. */
async function learn() {
  const [description, models] = await Promise.all([service.description(), service.models()]);
  const operations = new Set(Object.keys(description.paths).map((path) => path.replace("/v1/", "")));
  const loaded = models.filter((/** @type {any} */ each) => each.loaded);
  const grades = description["x-grades"] ?? [];
  views.segment.offer(loaded, operations);
  views.inspect.offer(loaded, grades);
  views.live.offer(loaded, grades);
}

function wireTabs() {
  for (const [index, name] of NAMES.entries()) {
    const tab = byId(`tab-${name}`);
    tab.addEventListener("click", () => choose(name));
    tab.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      const ways = { ArrowRight: 1, ArrowLeft: -1 };
      const way = ways[/** @type {keyof typeof ways} */ (event.key)];
      if (!way) return;
      const next = NAMES[(index + way + NAMES.length) % NAMES.length];
      choose(next);
      byId(`tab-${next}`).focus();
    });
  }
}

function wireTheme() {
  const use = (/** @type {string} */ theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    byId("theme").setAttribute("aria-label", `Colours: ${theme === "system" ? "as the system" : theme}`);
    byId("theme").title = byId("theme").getAttribute("aria-label");
  };
  let theme = localStorage.getItem(STORED_THEME) ?? "system";
  use(theme);
  byId("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    localStorage.setItem(STORED_THEME, theme);
    use(theme);
  });
}

function wireKeys() {
  addEventListener("keydown", (event) => {
    const at = /** @type {HTMLElement} */ (event.target);
    const typing = at.closest("input:not([type=radio]):not([type=checkbox]), select, textarea, dialog");
    if (!typing && current && views[current].key(event)) event.preventDefault();
  });
}

function wireHeader() {
  byId("key-button").addEventListener("click", async () => {
    const key = await askForKey();
    if (key === null) return;
    service.useKey(key);
    clearMessages();
    learn().catch(complain);
    if (current === "metrics") views.metrics.activate();
  });
  byId("help-button").addEventListener("click", () => byId("help-dialog").showModal());
}

wireTheme();
wireTabs();
wireKeys();
wireHeader();
byId("zoom-in").addEventListener("click", () => viewer.zoom(1.4));
byId("zoom-out").addEventListener("click", () => viewer.zoom(1 / 1.4));
byId("zoom-fit").addEventListener("click", () => viewer.fit());
takeImages(open, () => current === "segment" || current === "inspect");
const named = new URLSearchParams(location.hash.slice(1)).get("view") ?? "";
choose(NAMES.includes(named) ? named : "segment");
follow();
