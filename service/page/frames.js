/** Where live frames come from: a camera, or files again and again. */

import { UserError } from "./messages.js";

const QUALITY = 0.9;

/**
 * @typedef {object} Frame
 * @property {Blob} blob
 * @property {ImageBitmap} bitmap of the same, to be closed.
 * @property {string} name
 *
 * @typedef {object} Frames
 * @property {() => Promise<Frame>} next
 * @property {() => void} close
 */

/**
 * Open a camera.
 * @returns {Promise<Frames>}
 */
export async function openCamera() {
  if (!navigator.mediaDevices) {
    throw new UserError("Browsers give pages a camera only over HTTPS or on localhost. Open the page that way, or choose files.");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment", width: { ideal: 1280 }, height: { ideal: 960 } },
    });
  } catch (error) {
    const missing = /** @type {any} */ (error).name === "NotFoundError";
    throw new UserError(
      missing ? "There is no camera. Connect one, or choose files." : "The camera was not allowed. Allow it for this page, or choose files.",
    );
  }
  const video = document.createElement("video");
  Object.assign(video, { srcObject: stream, muted: true, playsInline: true });
  await video.play();
  const canvas = document.createElement("canvas");
  let number = 0;
  return {
    async next() {
      [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
      /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")).drawImage(video, 0, 0);
      const bitmap = await createImageBitmap(canvas);
      const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
      return { blob: /** @type {Blob} */ (blob), bitmap, name: `camera-${++number}.jpg` };
    },
    close() {
      for (const track of stream.getTracks()) track.stop();
    },
  };
}

/**
 * Take the images among files, in the order of their names.
 * @param {Iterable<File>} files
 * @returns {Frames}
 */
export function openFiles(files) {
  const images = [...files].filter((file) => /\.(jpe?g|png|webp|bmp)$/i.test(file.name));
  images.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  if (images.length === 0) throw new UserError("There are no JPEG, PNG, WebP or BMP images among these files.");
  let at = 0;
  return {
    async next() {
      const file = images[at++ % images.length];
      try {
        return { blob: file, bitmap: await createImageBitmap(file), name: file.name };
      } catch {
        throw new UserError(`This browser cannot show ${file.name}.`);
      }
    },
    close() {},
  };
}
