// @ts-check
// What a node shows of its run: one line; a bar of progress while it runs, of memory afterwards; amounts; warnings.

import { clampFraction, formatPercent, memoryMarks, wholePercent } from "./format.js";
import { make, makeBox } from "./style.js";

/**
 * @typedef {import("./style.js").Box & {showStarted: () => void, showProgress: (event: any) => void,
 *   showReport: (report: any) => void, showStopped: (word: string, reason?: string) => void}} Panel
 */

/**
 * @param {boolean} [compact] the line and the warnings alone, for nodes of others
 * @returns {Panel}
 */
export function createPanel(compact = false) {
  const { element, content } = makeBox("ExactVAE");
  const line = make("div", "line");
  line.setAttribute("role", "status");
  const dot = make("span", "dot");
  dot.setAttribute("aria-hidden", "true");
  const words = document.createElement("span");
  line.append(dot, words);
  const track = make("div", "track");
  const legend = make("div", "legend");
  const warnings = make("div", "warnings");
  content.append(line, track, legend, warnings);
  let percent = "";

  /** @param {string} text @param {"running" | "exact" | "other" | "failed"} state */
  function setLine(text, state) {
    // A screen reader shall read results, not every step on the way.
    line.setAttribute("aria-live", state === "running" ? "off" : "polite");
    words.textContent = text;
    dot.dataset.state = state;
    element.dataset.state = state;
  }

  /** @param {any} source */
  function setMemory(source) {
    const marks = memoryMarks(source);
    legend.replaceChildren(...marks.map(legendEntry));
    legend.hidden = compact || marks.length === 0;
    return marks;
  }

  function clear() {
    track.hidden = legend.hidden = true;
    warnings.replaceChildren();
  }

  clear();

  return {
    element,
    content,
    showStarted() {
      percent = "";
      setLine("running", "running");
      clear();
    },
    showProgress(event) {
      percent = formatPercent(event.fraction);
      setLine(typeof event.line === "string" ? event.line : percent, "running");
      setMemory(event);
      drawProgress(track, clampFraction(event.fraction));
      track.hidden = compact;
      warnings.replaceChildren();
    },
    showReport(report) {
      setLine(report.line, report.exact ? "exact" : "other");
      drawMemory(track, setMemory(report));
      if (compact) track.hidden = true;
      warnings.replaceChildren(...(report.warnings ?? []).map(warningEntry));
    },
    showStopped(word, reason = "") {
      const failed = word === "failed";
      const head = percent === "" || failed ? word : `${word} at ${percent}`;
      setLine(reason ? `${head} · ${reason}` : head, failed ? "failed" : "other");
      clear();
    },
  };
}

/** @param {HTMLElement} track @param {number} fraction */
function drawProgress(track, fraction) {
  const done = make("div", "done");
  done.style.width = `${fraction * 100}%`;
  track.replaceChildren(done);
  const range = { "aria-valuemin": "0", "aria-valuemax": "100", "aria-valuenow": `${wholePercent(fraction)}` };
  setRole(track, { role: "progressbar", "aria-label": "Progress", ...range });
  track.hidden = false;
}

/** @param {HTMLElement} track @param {import("./format.js").Mark[]} marks */
function drawMemory(track, marks) {
  // The widest first, so that the measured peak lies on the plan, and the budget's line on both.
  const bars = ["plan", "peak", "budget"].flatMap((name) => marks.filter((mark) => mark.name === name));
  track.replaceChildren(
    ...bars.map(({ name, share }) => {
      const bar = make("div", name);
      bar.style[name === "budget" ? "left" : "width"] = `${share * 100}%`;
      return bar;
    }),
  );
  setRole(track, { role: "img", "aria-label": `Memory: ${marks.map(({ text }) => text).join(", ")}` });
  // One amount alone has nothing to be compared with.
  track.hidden = marks.length < 2;
}

/** @param {HTMLElement} track @param {Record<string, string>} attributes */
function setRole(track, attributes) {
  for (const name of ["aria-valuenow", "aria-valuemin", "aria-valuemax"]) track.removeAttribute(name);
  for (const [name, value] of Object.entries(attributes)) track.setAttribute(name, value);
}

/** @param {import("./format.js").Mark} mark */
function legendEntry({ name, text }) {
  const entry = document.createElement("span");
  const swatch = make("span", "swatch", name);
  swatch.setAttribute("aria-hidden", "true");
  entry.append(swatch, text);
  return entry;
}

/** @param {string} text */
function warningEntry(text) {
  const entry = make("div", "warning");
  entry.textContent = text;
  return entry;
}
