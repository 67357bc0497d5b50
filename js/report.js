// @ts-check
// Shows on our nodes how a run goes and went. Everything shown comes from Python.

// @ts-ignore The host serves these two.
import { api } from "../../scripts/api.js";
// @ts-ignore
import { app } from "../../scripts/app.js";
import { chooseReport } from "./format.js";
import { findNode, isOurs, listNodes } from "./graph.js";
import { guard } from "./guard.js";
import { createPanel } from "./panel.js";
import { addPanel } from "./widget.js";

const SETTING = "ExactVAE.ShowOnNodes";
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];

/** @typedef {{panel: ReturnType<typeof createPanel>, remove: () => void}} Shown */
/** @type {WeakMap<any, Shown>} */
const shown = new WeakMap();
/** @type {WeakMap<any, any>} The last report of a node, for when the setting is switched on again. */
const reports = new WeakMap();
/** @type {Set<any>} Nodes between their first and their last progress event. */
const running = new Set();
let enabled = true;
let ready = false; // Settings are read before there is a graph.

const root = () => app.rootGraph ?? app.graph;

/** @param {any} node */
function panelOf(node) {
  let entry = shown.get(node);
  if (entry === undefined) {
    const panel = createPanel();
    entry = { panel, remove: addPanel(node, "exact_vae_report", panel.element, panel.content) };
    shown.set(node, entry);
  }
  return entry.panel;
}

/** @param {any} node */
function hide(node) {
  shown.get(node)?.remove();
  shown.delete(node);
}

/** @param {any} node */
function stop(node) {
  if (running.delete(node) && enabled) panelOf(node).showStopped();
}

/** @param {CustomEvent} event */
function onProgress({ detail }) {
  const node = findNode(root(), detail?.node);
  if (!isOurs(node)) return;
  if (!detail.done) {
    if (!running.has(node)) reports.delete(node); // What an earlier run measured is no news of this one.
    running.add(node);
    if (enabled) panelOf(node).showProgress(detail);
  } else if (detail.fraction >= 1) {
    running.delete(node);
    if (enabled) panelOf(node).showProgress(detail);
  } else {
    stop(node);
  }
}

/** @param {any} node @param {any} output the node's `ui` output */
function onOutput(node, output) {
  const report = isOurs(node) ? chooseReport(output?.exact_vae) : null;
  if (report === null) return;
  running.delete(node);
  reports.set(node, report);
  if (enabled) panelOf(node).showReport(report);
}

/** @param {boolean} value */
function setEnabled(value) {
  enabled = value;
  if (!ready) return;
  for (const { node } of listNodes(root())) {
    if (!isOurs(node)) continue;
    if (!enabled) hide(node);
    else if (reports.has(node)) panelOf(node).showReport(reports.get(node));
  }
}

/** Undo, and switching between workflows, make new nodes; the host keeps the outputs that the old ones had. */
function restore() {
  for (const { id, node } of listNodes(root())) {
    if (!shown.has(node)) onOutput(node, app.nodeOutputs?.[id]);
  }
}

app.registerExtension({
  name: "ExactVAE.Report",
  settings: [
    {
      id: SETTING,
      name: "Show progress, memory and time on the nodes",
      tooltip: "After a run: how it ran, whether it was exact, memory and seconds. While running: progress.",
      category: ["ExactVAE", "General", SETTING],
      type: "boolean",
      defaultValue: true,
      onChange: guard("setting", (/** @type {unknown} */ value) => setEnabled(value !== false)),
    },
  ],
  setup: guard("listeners", () => {
    ready = true;
    api.addEventListener("exact_vae.progress", guard("progress", onProgress));
    api.addEventListener(
      "executed",
      guard("report", ({ detail }) => onOutput(findNode(root(), detail?.display_node || detail?.node), detail?.output)),
    );
    const stopAll = guard("end of a run", () => [...running].forEach(stop));
    for (const name of ENDS) api.addEventListener(name, stopAll);
  }),
  // The host puts the outputs back a moment after this.
  afterConfigureGraph: guard("restoring", () => setTimeout(guard("restoring", restore))),
});
