/** How images come in: chosen, dropped, pasted, photographed, or one of the examples. */

import { byId, make } from "./dom.js";
import { UserError, complain } from "./messages.js";
import { BASE } from "./service.js";
import { drawableOf } from "./viewer.js";

const EXAMPLES = [
  { file: "oranges.jpg", title: "Oranges" },
  { file: "frame.jpg", title: "Sorting line" },
  { file: "orchard.jpg", title: "Apples" },
];

/**
 * @typedef {object} OpenedImage
 * @property {Blob} blob the file.
 * @property {string} name of the file.
 * @property {import("./viewer.js").Drawable} drawable
 */

/**
 * Read an image file.
 * @param {Blob} blob
 * @param {string} name
 * @returns {Promise<OpenedImage>}
 */
export async function readImage(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
  } catch {
    throw new UserError(
      `This browser cannot show ${name}. Choose a JPEG, PNG, WebP or BMP image; the service itself also reads TIFF.`,
    );
  }
  return { blob, name, drawable: await drawableOf(bitmap) };
}

/**
 * Let images come in.
 * @param {(image: OpenedImage) => void} open takes each image that came.
 * @param {() => boolean} wanted whether a dropped or pasted one is wanted now.
 */
export function takeImages(open, wanted) {
  const take = async (/** @type {Blob} */ blob, /** @type {string} */ name) => {
    try {
      open(await readImage(blob, name));
    } catch (error) {
      complain(error);
    }
  };
  const takeFile = (/** @type {File | null | undefined} */ file) => {
    if (file) take(file, file.name || "pasted.png");
  };
  for (const input of document.querySelectorAll("input[data-opens]")) {
    input.addEventListener("change", () => {
      const chosen = /** @type {HTMLInputElement} */ (input);
      takeFile(chosen.files?.[0]);
      chosen.value = "";
    });
  }
  takeDrops(takeFile, wanted);
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (file && wanted()) takeFile(file);
  });
  showExamples(take);
}

/**
 * @param {(file: File | undefined) => void} take
 * @param {() => boolean} wanted
 */
function takeDrops(take, wanted) {
  const stage = byId("stage");
  const carries = (/** @type {DragEvent} */ event) => wanted() && event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (carries(event)) stage.classList.add("dropping");
    event.preventDefault();
  });
  addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) stage.classList.remove("dropping");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    stage.classList.remove("dropping");
    if (carries(event)) take(event.dataTransfer?.files[0]);
  });
}

/** @param {(blob: Blob, name: string) => void} take */
function showExamples(take) {
  for (const { file, title } of EXAMPLES) {
    const address = new URL(`page/examples/${file}`, BASE).href;
    const image = make("img", { src: address, alt: "", width: 168, height: 112 });
    const button = make("button", { type: "button" }, image, make("span", {}, title));
    button.addEventListener("click", async () => {
      try {
        take(await (await fetch(address)).blob(), file);
      } catch {
        complain(new UserError("The example cannot be loaded. Check that the service is running, then try again."));
      }
    });
    byId("examples").append(button);
  }
}
