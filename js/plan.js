// @ts-check
// Shows the plan on the node that makes it: text from Python, in columns; while there is none, why.

// @ts-ignore The host serves these two.
import { api } from "../../scripts/api.js";
// @ts-ignore
import { app } from "../../scripts/app.js";
import { joinText } from "./format.js";
import { findNode } from "./graph.js";
import { guard } from "./guard.js";
import { make, makeBox } from "./style.js";
import { addPanel } from "./widget.js";

const NODE = "ExactVAEPlan";
const MIN_WIDTH = 680; // The table's; longer lines are scrolled.

/** @type {WeakMap<any, HTMLElement>} */
const texts = new WeakMap();

/** @param {any} node */
function textOf(node) {
  let text = texts.get(node);
  if (text === undefined) {
    const box = makeBox("Plan");
    text = make("pre", "text");
    text.tabIndex = 0; // A wide table is scrolled with the arrow keys.
    box.content.append(text);
    texts.set(node, text);
    if (node.size[0] < MIN_WIDTH) node.setSize([MIN_WIDTH, node.size[1]]);
    addPanel(node, "exact_vae_plan", box);
  }
  return text;
}

/** @param {CustomEvent} event */
function onExecuted({ detail }) {
  const node = findNode(app.rootGraph ?? app.graph, detail?.display_node || detail?.node);
  const plan = joinText(detail?.output?.text);
  if (node?.comfyClass === NODE && plan) textOf(node).textContent = plan;
}

/** What an earlier run planned is no plan of this one. @param {CustomEvent} event */
function onExecuting({ detail }) {
  const text = texts.get(findNode(app.rootGraph ?? app.graph, detail));
  if (text !== undefined) text.textContent = "";
}

/** @param {CustomEvent} event */
function onError({ detail }) {
  const node = findNode(app.rootGraph ?? app.graph, detail?.node_id);
  if (node?.comfyClass === NODE) textOf(node).textContent = joinText(detail?.exception_message).trim().split("\n")[0];
}

app.registerExtension({
  name: "ExactVAE.Plan",
  setup: guard("listeners", () => {
    api.addEventListener("executing", guard("start of a plan", onExecuting));
    api.addEventListener("executed", guard("plan", onExecuted));
    api.addEventListener("execution_error", guard("failed plan", onError));
  }),
});
