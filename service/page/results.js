/** The part of a panel that hands a result on: copied or downloaded, with the call that made it. */

import { download, make } from "./dom.js";
import { toCoco, toLabelStudio, toPng, toRle } from "./exports.js";
import { announce, complain, UserError } from "./messages.js";

/**
 * @typedef {object} Result
 * @property {import("./exports.js").Region[]} regions
 * @property {import("./exports.js").ImageFacts} image
 * @property {string} curl
 * @property {string} python
 */

/**
 * Build the part.
 * @param {HTMLElement} section is filled.
 * @param {() => Result | null} current what there is to hand on; null where there is nothing.
 * @returns {() => void} to be called when that changed.
 */
export function showResults(section, current) {
  const actions = [
    button("Copy RLE", (result) => copy(pretty(toRle(result.regions, result.image)), "The masks were copied.")),
    button("↓ RLE", (result) => save(result, "rle.json", toRle)),
    button("↓ PNG", async (result) => download(await toPng(result.regions, result.image), named(result, "masks.png"))),
    button("↓ COCO", (result) => save(result, "coco.json", toCoco)),
    button("↓ Label Studio", (result) => save(result, "label-studio.json", toLabelStudio)),
  ];
  const code = make("pre", { tabIndex: 0, role: "region", "aria-label": "The call" });
  const language = make(
    "select",
    { className: "short", "aria-label": "Language of the call" },
    make("option", { value: "curl" }, "curl"),
    make("option", { value: "python" }, "Python"),
  );
  const copyCall = make("button", { type: "button", className: "button small" }, "Copy");
  copyCall.addEventListener("click", () => copy(code.textContent ?? "", "The call was copied."));
  language.addEventListener("change", () => refresh());
  const [copying, ...downloads] = actions;
  section.append(
    make("div", { className: "row spread" }, make("h2", {}, "Result"), copying),
    make("div", { className: "row downloads" }, ...downloads),
    make("div", { className: "row spread" }, make("h2", {}, "The call"), make("div", { className: "row" }, language, copyCall)),
    code,
  );

  /**
   * @param {string} text
   * @param {(result: Result) => unknown} act
   */
  function button(text, act) {
    const saves = text.startsWith("↓ ");
    const label = saves ? { "aria-label": `Download ${text.slice(2)}` } : {};
    const made = make("button", { type: "button", className: "button small", ...label }, text);
    made.addEventListener("click", async () => {
      const result = current();
      try {
        if (result) await act(result);
      } catch (error) {
        complain(error);
      }
    });
    return made;
  }

  function refresh() {
    const result = current();
    section.hidden = result === null;
    if (result) code.textContent = language.value === "curl" ? result.curl : result.python;
    for (const each of actions) each.disabled = !result?.regions.length;
  }

  refresh();
  return refresh;
}

/**
 * @param {Result} result
 * @param {string} ending
 * @param {(regions: import("./exports.js").Region[], image: import("./exports.js").ImageFacts) => object} format
 */
function save(result, ending, format) {
  const content = JSON.stringify(format(result.regions, result.image));
  download(new Blob([content], { type: "application/json" }), named(result, ending));
}

/**
 * @param {Result} result
 * @param {string} ending
 */
function named(result, ending) {
  return `${result.image.name.replace(/\.\w+$/, "")}.${ending}`;
}

/** @param {object} value */
function pretty(value) {
  return JSON.stringify(value, null, 1);
}

/**
 * @param {string} text
 * @param {string} done said afterwards.
 */
async function copy(text, done) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    throw new UserError("This browser lets pages copy only over HTTPS or on localhost. Download the file instead.");
  }
  announce(done);
}
