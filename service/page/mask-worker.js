/** Beside the page's thread: outlines of masks, so that clicking and moving stay fluid with images of any size. */

import { cropOf, outlinesOf } from "./masks.js";

addEventListener("message", ({ data: { id, mask } }) => {
  const rings = outlinesOf(cropOf(mask));
  postMessage({ id, rings }, { transfer: rings.map((ring) => ring.buffer) });
});
