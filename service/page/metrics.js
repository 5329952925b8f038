/** The view Metrics: what /metrics says, as running plots, for those who have no Grafana. */

import { byId } from "./dom.js";
import { growth, quantileOf, readExposition, sums } from "./exposition.js";
import { clearMessages, complain } from "./messages.js";
import { Plot } from "./plot.js";

const EVERY_MS = 2000;

const perSecond = (/** @type {number} */ value) => `${value < 10 ? value.toFixed(1) : Math.round(value)}/s`;
const percent = (/** @type {number} */ value) => `${Math.round(value * 100)} %`;
const milliseconds = (/** @type {number} */ value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
const mebibytes = (/** @type {number} */ value) => `${Math.round(value / 2 ** 20)} MiB`;

const runner = (/** @type {any} */ labels) => `${labels.runner} ${labels.stage}`;

export class MetricsView {
  /** @param {import("./service.js").Service} service */
  constructor(service) {
    this._service = service;
    this._timer = 0;
    /** @type {{at: number, samples: Map<string, import("./exposition.js").Sample[]>} | null} */
    this._before = null;
    this._plots = {
      requests: new Plot({ title: "Requests by outcome", write: perSecond }),
      load: new Plot({ title: "Load of the device", write: percent }),
      wait: new Plot({ title: "Queue wait", write: milliseconds }),
      duration: new Plot({ title: "Time to answer", write: milliseconds }),
      batch: new Plot({ title: "Mean batch size" }),
      refused: new Plot({ title: "Errors and refusals", write: perSecond }),
      progress: new Plot({ title: "Requests in progress", write: (value) => String(value) }),
      memory: new Plot({ title: "Memory of requests", write: mebibytes, stacked: true }),
    };
    byId("board").append(...Object.values(this._plots).map((plot) => plot.element));
  }

  activate() {
    clearMessages();
    this._read();
    this._timer = setInterval(() => this._read(), EVERY_MS);
  }

  deactivate() {
    clearInterval(this._timer);
    this._before = null;
  }

  /** @returns {boolean} */
  key() {
    return false;
  }

  async _read() {
    let text;
    try {
      text = await this._service.metrics();
    } catch (error) {
      clearInterval(this._timer);
      complain(error);
      return;
    }
    const now = { at: performance.now(), samples: readExposition(text) };
    const before = this._before;
    this._before = now;
    this._showState(now.samples);
    if (before !== null) this._showChange(before.samples, now.samples, (now.at - before.at) / 1000);
  }

  /** @param {Map<string, import("./exposition.js").Sample[]>} samples */
  _showState(samples) {
    this._plots.memory.add(sums(samples, "pomona_memory_bytes", (labels) => labels.kind));
    this._plots.progress.add({ "": sums(samples, "pomona_requests_in_progress")[""] ?? 0 });
    const total = sums(samples, "pomona_requests_total", (labels) => labels.outcome);
    const counts = Object.entries(total).map(([name, count]) => `${count.toLocaleString("en")} ${name}`);
    byId("board-summary").textContent = counts.length ? `Since the start: ${counts.join(", ")}.` : "No request so far.";
  }

  /**
   * @param {Map<string, import("./exposition.js").Sample[]>} before
   * @param {Map<string, import("./exposition.js").Sample[]>} now
   * @param {number} seconds between them.
   */
  _showChange(before, now, seconds) {
    const grown = (/** @type {string} */ name, /** @type {any} */ by) => growth(sums(before, name, by), sums(now, name, by));
    const rate = (/** @type {Record<string, number>} */ values) =>
      Object.fromEntries(Object.entries(values).map(([name, value]) => [name, value / seconds]));
    const quantiles = (/** @type {string} */ name) => {
      const buckets = grown(name, (/** @type {any} */ labels) => labels.le);
      return { median: 1000 * quantileOf(buckets, 0.5), "95 %": 1000 * quantileOf(buckets, 0.95) };
    };
    this._plots.requests.add(rate(grown("pomona_requests_total", (/** @type {any} */ labels) => labels.outcome)));
    this._plots.load.add(rate(grown("pomona_batch_duration_seconds_sum", runner)));
    this._plots.wait.add(quantiles("pomona_queue_wait_seconds_bucket"));
    this._plots.duration.add(quantiles("pomona_request_duration_seconds_bucket"));
    const [items, batches] = [grown("pomona_batch_size_sum", runner), grown("pomona_batch_size_count", runner)];
    const mean = Object.keys(items).map((name) => [name, batches[name] ? items[name] / batches[name] : 0]);
    this._plots.batch.add(Object.fromEntries(mean));
    this._plots.refused.add(rate(grown("pomona_problems_total", (/** @type {any} */ labels) => labels.code)));
  }
}
