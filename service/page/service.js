/** The service behind the page: its operations over HTTP, its models, its errors. */

/** Where the page is served: prefixes of proxies stay in front. */
export const BASE = new URL("./", document.baseURI);

const STORED_KEY = "pomona.key";

/** An error that the service answered, or that kept it from answering. Its message is a sentence. */
export class Problem extends Error {
  /**
   * @param {string} code
   * @param {string} detail
   * @param {number} [status] 0 where there was no answer.
   */
  constructor(code, detail, status = 0) {
    super(detail);
    this.code = code;
    this.status = status;
  }

  /** Whether the answer came too late, or would have. */
  get late() {
    return this.code === "deadline_unreachable" || this.code === "deadline_exceeded";
  }
}

/**
 * @typedef {object} Call
 * @property {string} operation such as `inspect`.
 * @property {Blob} [image]
 * @property {string} [imageName] of its file.
 * @property {string} [imageId] instead of the image.
 * @property {object} [request] the JSON.
 * @property {number} [deadlineMs]
 * @property {AbortSignal} [signal]
 */

export class Service {
  /** @param {() => Promise<string | null>} askForKey asks the person for an API key; null where they have none. */
  constructor(askForKey) {
    this._askForKey = askForKey;
    this._asking = null;
    this.key = sessionStorage.getItem(STORED_KEY) ?? "";
  }

  /**
   * Use another API key from now on, until the browser's tab is closed.
   * @param {string} key empty for none.
   */
  useKey(key) {
    this.key = key;
    if (key) sessionStorage.setItem(STORED_KEY, key);
    else sessionStorage.removeItem(STORED_KEY);
  }

  /**
   * Ask for an operation that takes an image.
   * @param {Call} call
   * @returns {Promise<any>} the answer.
   */
  async post(call) {
    const form = new FormData();
    if (call.imageId !== undefined) form.append("image_id", call.imageId);
    else if (call.image !== undefined) form.append("image", call.image, call.imageName ?? "image");
    form.append("request", JSON.stringify(call.request ?? {}));
    /** @type {Record<string, string>} */
    const headers = call.deadlineMs ? { "X-Deadline-Ms": String(call.deadlineMs) } : {};
    const answer = await this._fetch(`v1/${call.operation}`, {
      method: "POST",
      body: form,
      headers,
      signal: call.signal,
    });
    return await answer.json();
  }

  /** @returns {Promise<any>} the catalogue. */
  async models() {
    return (await (await this._fetch("v1/models", {})).json()).models;
  }

  /** @returns {Promise<any>} the API's description. */
  async description() {
    return await (await this._fetch("docs.json", {})).json();
  }

  /** @returns {Promise<string>} all metrics, in Prometheus' text format. */
  async metrics() {
    return await (await this._fetch("metrics", {}, "admin")).text();
  }

  /** @returns {Promise<"ready" | "loading" | "away">} */
  async state() {
    try {
      return (await fetch(new URL("readyz", BASE), { cache: "no-store" })).ok ? "ready" : "loading";
    } catch {
      return "away";
    }
  }

  /**
   * @param {string} path
   * @param {any} options
   * @param {string} [scope] that the key needs beside `infer`.
   */
  async _fetch(path, options, scope) {
    let answer = await this._try(path, options);
    if (answer.status === 401 && (await this._getKey())) answer = await this._try(path, options);
    if (answer.ok) return answer;
    throw await problemOf(answer, scope);
  }

  /**
   * @param {string} path
   * @param {any} options
   */
  async _try(path, options) {
    const headers = { ...options.headers, ...(this.key ? { Authorization: `Bearer ${this.key}` } : {}) };
    try {
      return await fetch(new URL(path, BASE), { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new Problem("unreachable", "The service cannot be reached. Check that it is running, then try again.");
    }
  }

  /** Ask for a key once, however many requests need it. */
  async _getKey() {
    this._asking ??= this._askForKey().finally(() => (this._asking = null));
    const key = await this._asking;
    if (key === null) return false;
    this.useKey(key);
    return true;
  }
}

/**
 * @param {Response} answer
 * @param {string} [scope]
 */
async function problemOf(answer, scope) {
  let body;
  try {
    body = await answer.json();
  } catch {
    body = {};
  }
  if (answer.status === 401) {
    const needs = scope === undefined ? "" : ` with the scope ${scope}`;
    return new Problem(
      "unauthenticated",
      `The service needs an API key${needs}. Enter yours with “Key”, at the top right.`,
      401,
    );
  }
  const detail = body.detail ?? `Something between this page and the service answered ${answer.status} ${answer.statusText}.`;
  return new Problem(body.code ?? "unknown", detail, answer.status);
}
