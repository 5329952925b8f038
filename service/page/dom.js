/** Elements of the document. */

/**
 * Return the element with an id, which the page must have.
 * @param {string} id
 * @returns {any}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no element #${id}`);
  return found;
}

/**
 * Make an element.
 * @param {string} name tag name.
 * @param {Record<string, any>} [properties] set on the element; `data-…`, `aria-…`, `role` and `for` as attributes.
 * @param {...(Node | string)} children
 * @returns {any}
 */
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (/^(data-|aria-|role$|for$|scope$|colspan$)/.test(key)) element.setAttribute(key, value);
    else /** @type {any} */ (element)[key] = value;
  }
  element.append(...children);
  return element;
}

/**
 * Run something once no further call has come for a while.
 * @param {() => void} action
 * @param {number} milliseconds
 * @returns {() => void}
 */
export function settled(action, milliseconds) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(action, milliseconds);
  };
}

/**
 * Offer a file for download.
 * @param {Blob} content
 * @param {string} name
 */
export function download(content, name) {
  const link = make("a", { href: URL.createObjectURL(content), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
