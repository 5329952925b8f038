/** The calls that made an answer, to copy: curl, and Python with Pomona's client. */

import { BASE } from "./service.js";

/**
 * Return the curl command.
 * @param {string} operation
 * @param {string} file name of the image's.
 * @param {object} request
 * @param {{deadlineMs?: number, key: boolean}} options `key`: whether the service has API keys.
 */
export function curlOf(operation, file, request, { deadlineMs, key }) {
  const parts = [
    "curl -s",
    ...(key ? [`-H "Authorization: Bearer $POMONA_API_KEY"`] : []),
    ...(deadlineMs ? [`-H 'X-Deadline-Ms: ${deadlineMs}'`] : []),
    `-F ${quoted(`image=@${file}`)}`,
    `-F ${quoted(`request=${JSON.stringify(request)}`)}`,
    quoted(new URL(`v1/${operation}`, BASE).href),
  ];
  return parts.join(" \\\n  ");
}

/**
 * Return the Python program of a segmentation.
 * @param {string} file
 * @param {any} request as the service takes it.
 */
export function pythonOfSegment(file, request) {
  const prompts = request.prompts.map(pythonOfPrompt);
  const used = (/** @type {string} */ name) => prompts.some((/** @type {string} */ each) => each.includes(`${name}(`));
  const names = ["Client", ...["Box", "Mask", "Point", "Prompt"].filter(used)];
  const options = Object.entries(request)
    .filter(([name]) => ["model", "input_size", "padding"].includes(name))
    .map(([name, value]) => `, ${name}=${JSON.stringify(value)}`);
  return [
    `from pomona import ${names.join(", ")}`,
    ...(used("Rle") ? ["from pomona.masks import Rle"] : []),
    "",
    `with Client(${text(BASE.href.replace(/\/$/, ""))}) as pomona:`,
    `    result = pomona.segment(${text(file)}, [${prompts.join(", ")}]${options.join("")})`,
    "    for mask in result.masks:",
    "        print(mask.score, mask.box, mask.area, mask.array.shape)",
  ].join("\n");
}

/**
 * Return the Python program that masks everything.
 * @param {string} file
 * @param {any} request
 */
export function pythonOfAutomatic(file, request) {
  const options = Object.entries(request).map(([name, value]) => `${name}=${JSON.stringify(value)}`);
  return [
    "from pomona import Client",
    "",
    `with Client(${text(BASE.href.replace(/\/$/, ""))}) as pomona:`,
    `    result = pomona.automatic(${[text(file), ...options].join(", ")})`,
    "    for mask in result.masks:",
    "        print(mask.score, mask.box, mask.area)",
  ].join("\n");
}

/**
 * Return the Python program of an inspection.
 * @param {string} file
 * @param {any} request
 * @param {number} [deadlineMs]
 */
export function pythonOfInspect(file, request, deadlineMs) {
  const options = [
    request.mode && `mode=${text(request.mode)}`,
    request.model && `model=${text(request.model)}`,
    request.grades && `grades=${pythonOfGrades(request.grades)}`,
    deadlineMs && `deadline=${deadlineMs / 1000}`,
  ].filter(Boolean);
  return [
    "from pomona import Client",
    "",
    `with Client(${text(BASE.href.replace(/\/$/, ""))}) as pomona:`,
    `    report = pomona.inspect(${[text(file), ...options].join(", ")})`,
    "    for fruit in report.fruits:",
    '        print(fruit.grade, f"{fruit.infected_fraction:.0%}")',
  ].join("\n");
}

/** @param {any} prompt */
function pythonOfPrompt(prompt) {
  const points = (prompt.points ?? []).map(([x, y], /** @type {number} */ index) => {
    return `Point(${x}, ${y}${prompt.labels[index] === 0 ? ", label=0" : ""})`;
  });
  const parts = [
    points.length && `points=[${points.join(", ")}]`,
    prompt.box && `box=Box(${prompt.box.join(", ")})`,
    prompt.mask && `mask=${pythonOfMask(prompt.mask)}`,
    !prompt.multimask && "multimask=False",
  ].filter(Boolean);
  return `Prompt(${parts.join(", ")})`;
}

/** @param {import("./masks.js").Rle} mask */
function pythonOfMask({ size, counts }) {
  return `Mask((${size.join(", ")}), Rle((${size.join(", ")}), ${text(counts)}))`;
}

/** @param {{grade: string, max_infected_fraction: number}[]} grades */
function pythonOfGrades(grades) {
  return `{${grades.map((each) => `${text(each.grade)}: ${each.max_infected_fraction}`).join(", ")}}`;
}

/** @param {string} value */
function text(value) {
  return JSON.stringify(value);
}

/** @param {string} value for a shell. */
function quoted(value) {
  return `'${value.replaceAll("'", `'\\''`)}'`;
}
