// @ts-check
// Numbers and lists from Python as text and shares. No imports, so that tests need no page.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/**
 * Short, for a small place: 512 B, 1.5 KiB, 3.1 GiB, 12 GiB.
 * @param {unknown} bytes
 * @returns {string | null} null for anything that is no amount of memory
 */
export function formatBytes(bytes) {
  if (!isAmount(bytes)) return null;
  let value = bytes;
  let unit = 0;
  // What would be written as 1024 belongs to the next unit.
  while (value >= 1023.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value.toFixed(unit > 0 && value < 9.95 ? 1 : 0)} ${UNITS[unit]}`;
}

/**
 * @param {unknown} value
 * @returns {value is number}
 */
function isAmount(value) {
  return typeof value === "number" && Number.isFinite(value) && value >= 0;
}

/**
 * A share between 0 and 1; 0 for anything that is no number.
 * @param {unknown} fraction
 */
export function clampFraction(fraction) {
  return typeof fraction === "number" && fraction > 0 ? Math.min(1, fraction) : 0;
}

/** @param {unknown} fraction @returns {number} rounded down; 0.57 * 100 is a little less than 57 */
export function wholePercent(fraction) {
  return Math.floor(clampFraction(fraction) * 100 + 1e-9);
}

/** @param {unknown} fraction */
export function formatPercent(fraction) {
  return `${wholePercent(fraction)}%`;
}

/**
 * @typedef {{name: "peak" | "plan" | "budget", text: string, share: number}} Mark
 * The memory of a run: what is known of the measured peak, the plan and the budget, as shares of the largest.
 * @param {Record<string, unknown>} source a report or a progress event
 * @returns {Mark[]} unknown values are left out; a measured 0 is kept
 */
export function memoryMarks(source) {
  /** @type {["peak" | "plan" | "budget", unknown][]} */
  const values = [
    ["peak", source.peak_bytes],
    ["plan", source.plan_bytes],
    ["budget", source.budget_bytes],
  ];
  const known = values.flatMap(([name, bytes]) => (isAmount(bytes) ? [{ name, bytes }] : []));
  const largest = Math.max(0, ...known.map(({ bytes }) => bytes));
  return known.map(({ name, bytes }) => ({
    name,
    text: `${name} ${formatBytes(bytes)}`,
    share: largest > 0 ? bytes / largest : 0,
  }));
}

/**
 * The text that a node sent as its `ui` output.
 * @param {unknown} text a list of lines or paragraphs, or one text
 */
export function joinText(text) {
  const parts = Array.isArray(text) ? text : [text];
  return parts.filter((part) => typeof part === "string").join("\n");
}
