/** What the page says to the person: errors, which stay until they are closed, and news for screen readers. */

import { byId, make } from "./dom.js";
import { Problem } from "./service.js";

const SHOWN_AT_MOST = 3;

/**
 * Show an error as a sentence; a request that was given up is none.
 * @param {unknown} error
 */
export function complain(error) {
  if (error instanceof DOMException && error.name === "AbortError") return;
  const text = error instanceof Problem || error instanceof UserError ? error.message : `Something failed: ${error}`;
  if (!(error instanceof Problem || error instanceof UserError)) console.error(error);
  show(text, "bad");
}

/** Something that the person can put right; its message is a sentence. */
export class UserError extends Error {}

/**
 * Say something in passing; screen readers read it aloud.
 * @param {string} text
 */
export function announce(text) {
  byId("news").textContent = text;
}

/** Remove all messages, as what they were about is over. */
export function clearMessages() {
  byId("messages").replaceChildren();
}

/**
 * @param {string} text
 * @param {string} kind
 */
function show(text, kind) {
  const box = byId("messages");
  for (const old of box.querySelectorAll(".message")) if (old.dataset.text === text) old.remove();
  const close = make("button", { type: "button", className: "button small plain", "aria-label": "Close" }, "✕");
  const message = make("div", { className: `message ${kind}`, "data-text": text }, make("p", {}, text), close);
  close.addEventListener("click", () => message.remove());
  box.append(message);
  while (box.childElementCount > SHOWN_AT_MOST) box.firstElementChild.remove();
}
