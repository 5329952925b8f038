/** Prometheus' text format, read; and what happened between two readings. Pure. */

/** @typedef {{labels: Record<string, string>, value: number}} Sample */

/**
 * Read all samples.
 * @param {string} text
 * @returns {Map<string, Sample[]>} by name.
 */
export function readExposition(text) {
  /** @type {Map<string, Sample[]>} */
  const samples = new Map();
  for (const line of text.split("\n")) {
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (found === null) continue;
    const [, name, inner, value] = found;
    const labels = Object.fromEntries([...(inner ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map((each) => [each[1], each[2]]));
    const list = samples.get(name) ?? [];
    list.push({ labels, value: Number(value.replace("Inf", "Infinity")) });
    samples.set(name, list);
  }
  return samples;
}

/**
 * Return the sums of a metric's samples by a label.
 * @param {Map<string, Sample[]>} samples
 * @param {string} name
 * @param {(labels: Record<string, string>) => string} [by] names the group; by default all are one.
 * @returns {Record<string, number>}
 */
export function sums(samples, name, by = () => "") {
  /** @type {Record<string, number>} */
  const found = {};
  for (const { labels, value } of samples.get(name) ?? []) found[by(labels)] = (found[by(labels)] ?? 0) + value;
  return found;
}

/**
 * Return how much each group grew.
 * @param {Record<string, number>} before
 * @param {Record<string, number>} now
 */
export function growth(before, now) {
  // A counter that shrank belongs to a process that was restarted.
  const grown = (/** @type {string} */ name) => Math.max(0, now[name] - (before[name] ?? 0));
  return Object.fromEntries(Object.keys(now).map((name) => [name, grown(name)]));
}

/**
 * Estimate a quantile of what a histogram gathered.
 * @param {Record<string, number>} buckets cumulative counts by their upper bounds.
 * @param {number} quantile
 * @returns {number} 0 where nothing was gathered.
 */
export function quantileOf(buckets, quantile) {
  const bounds = Object.keys(buckets).map((bound) => Number(bound.replace("+Inf", "Infinity"))).sort((a, b) => a - b);
  const count = (/** @type {number} */ bound) => buckets[bound === Infinity ? "+Inf" : keyOf(buckets, bound)];
  const total = count(Infinity) ?? 0;
  if (!total) return 0;
  let [below, low] = [0, 0];
  for (const bound of bounds) {
    if (count(bound) >= quantile * total) {
      if (bound === Infinity) return low;
      return low + ((bound - low) * (quantile * total - below)) / Math.max(1e-9, count(bound) - below);
    }
    [below, low] = [count(bound), bound];
  }
  return low;
}

/**
 * @param {Record<string, number>} buckets
 * @param {number} bound
 */
function keyOf(buckets, bound) {
  return /** @type {string} */ (Object.keys(buckets).find((key) => Number(key) === bound));
}
