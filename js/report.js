// @ts-check
// Shows on a node how a run goes, went or ended: on ours, and on any other that decodes or encodes with an exact VAE.
// Everything shown comes from Python.

// @ts-ignore The host serves these two.
import { api } from "../../scripts/api.js";
// @ts-ignore
import { app } from "../../scripts/app.js";
import { findCaller, findNode, findPlace, isOurs, listNodes } from "./graph.js";
import { guard } from "./guard.js";
import { createPanel } from "./panel.js";
import { addRun, chooseReport, createKeeper, isReport, reportOf } from "./runs.js";
import { addPanel } from "./widget.js";

const SETTING = "ExactVAE.ShowOnNodes";

/** @typedef {{panel: import("./panel.js").Panel, widget: import("./widget.js").Placed}} Shown */
/** @type {WeakMap<any, Shown>} */
const shown = new WeakMap();
/** @type {WeakMap<any, any>} The last report of a node, for when the setting is switched on again. */
const reports = new WeakMap();
/** @type {WeakMap<any, import("./runs.js").Runs>} */
const runs = new WeakMap();
/** @type {WeakSet<any>} Nodes that took no panel. */
const refused = new WeakSet();
/** @type {Set<any>} Nodes that began in this prompt and have told nothing since. */
const started = new Set();
/** @type {Set<any>} Nodes between their first and their last progress event. */
const running = new Set();
/** @type {Set<any>} Nodes whose line says that a run was stopped or failed. */
const stopped = new Set();
const keeper = createKeeper();
/** @type {unknown} */
let prompt = null;
let enabled = true;
let ready = false; // Settings are read before there is a graph.

const root = () => app.rootGraph ?? app.graph;

/** @param {any} node @param {(panel: import("./panel.js").Panel) => void} draw */
function show(node, draw) {
  if (!enabled) return;
  if (shown.get(node)?.widget.isThere() === false) hide(node); // Some packs take all widgets off their nodes.
  let entry = shown.get(node);
  if (entry === undefined) {
    const panel = createPanel(!isOurs(node));
    entry = { panel, widget: addPanel(node, "exact_vae_report", panel) };
    shown.set(node, entry);
  }
  draw(entry.panel);
  entry.widget.keepLast();
}

/** @param {any} node */
function hide(node) {
  shown.get(node)?.widget.remove();
  shown.delete(node);
}

/** The node that shows what is told of a run: a panel is tried on it. @param {any} detail */
function placeOf(detail) {
  const caller = findCaller(root(), detail);
  let place = findPlace(caller, refused);
  while (place !== null && enabled && !shown.has(place)) {
    try {
      show(place, (panel) => panel.showStarted());
    } catch {
      refused.add(place);
      place = findPlace(caller, refused);
    }
  }
  return place;
}

/** @param {any} node */
function idOf(node) {
  return listNodes(root()).find((entry) => entry.node === node)?.id ?? "";
}

/** What an earlier run said is no news of this one. @param {any} node */
function forget(node) {
  reports.delete(node);
  runs.delete(node);
  stopped.delete(node);
  keeper.drop(root(), idOf(node), node);
}

/** @param {any} node @param {any} report */
function finish(node, report) {
  for (const nodes of [running, started, stopped]) nodes.delete(node);
  reports.set(node, report);
  keeper.put(root(), idOf(node), node, report);
  show(node, (panel) => panel.showReport(report));
}

/** @param {any} node @param {string} word @param {string} [reason] */
function stop(node, word, reason) {
  for (const nodes of [running, started]) nodes.delete(node);
  stopped.add(node);
  show(node, (panel) => panel.showStopped(word, reason));
}

/** @param {CustomEvent} event */
function onProgress({ detail }) {
  const node = placeOf(detail);
  if (node === null) return;
  started.delete(node);
  if (!detail.done) {
    if (!running.has(node)) reports.delete(node);
    running.add(node);
    show(node, (panel) => panel.showProgress(detail));
  } else if (isReport(detail.report)) {
    const all = addRun(runs.get(node), detail.prompt_id, detail.report);
    runs.set(node, all);
    finish(node, reportOf(all));
  } else {
    const reason = typeof detail.stopped === "string" ? detail.stopped : "";
    if (reason === "cancelled") stop(node, reason);
    else stop(node, "stopped", reason);
  }
}

/** @param {any} node @param {any} output the node's `ui` output */
function onOutput(node, output) {
  const report = isOurs(node) ? chooseReport(output?.exact_vae) : null;
  if (report !== null) finish(node, report);
}

/** A prompt begins: what went wrong in the one before is over. @param {CustomEvent} event */
function onStart({ detail }) {
  prompt = detail?.prompt_id ?? null;
  running.clear();
  started.clear();
  for (const node of stopped) hide(node);
  stopped.clear();
}

/** A node begins. @param {CustomEvent} event with the node's id, or null where the prompt is over */
function onExecuting({ detail }) {
  const node = findNode(root(), detail);
  if (node === null || running.has(node) || runs.get(node)?.prompt === prompt) return;
  forget(node);
  if (!shown.has(node)) return;
  started.add(node);
  show(node, (panel) => panel.showStarted());
}

/** @param {string} name of the event @param {CustomEvent} event */
function onEnd(name, { detail }) {
  const node = findNode(root(), detail?.node_id);
  if (name === "execution_interrupted") {
    for (const each of [...running]) stop(each, "cancelled");
    if (node !== null && (stopped.has(node) || started.has(node))) stop(node, "cancelled");
  } else if (name === "execution_error" && node !== null && (isOurs(node) || shown.has(node))) {
    stop(node, "failed", String(detail?.exception_message ?? "").trim().split("\n")[0]);
  }
  for (const each of [...running]) stop(each, "stopped");
  for (const each of started) hide(each); // It told nothing of itself: there is nothing to say.
  started.clear();
}

/** @param {boolean} value */
function setEnabled(value) {
  enabled = value;
  if (!ready) return;
  for (const { node } of listNodes(root())) {
    if (!enabled) hide(node);
    else if (reports.has(node)) show(node, (panel) => panel.showReport(reports.get(node)));
  }
}

/** Undo, and switching between workflows, make new nodes; the host keeps the outputs that the old ones had. */
function restore() {
  for (const { id, node } of listNodes(root())) {
    if (shown.has(node)) continue;
    onOutput(node, app.nodeOutputs?.[id]);
    const report = reports.has(node) ? null : keeper.get(root(), id, node);
    if (report !== null) finish(node, report);
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
    api.addEventListener("execution_start", guard("start of a run", onStart));
    api.addEventListener("executing", guard("start of a node", onExecuting));
    api.addEventListener(
      "executed",
      guard("report", ({ detail }) => onOutput(findCaller(root(), detail), detail?.output)),
    );
    for (const name of ["execution_success", "execution_error", "execution_interrupted"]) {
      api.addEventListener(name, guard("end of a run", (/** @type {CustomEvent} */ event) => onEnd(name, event)));
    }
  }),
  // The host puts the outputs back a moment after this.
  afterConfigureGraph: guard("restoring", () => setTimeout(guard("restoring", restore))),
});
