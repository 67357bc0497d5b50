// @ts-check
// The node that shows a run: the one that called for it, whichever pack's it is. No imports but of the graph.

import { findNode } from "./graph.js";

const MAKER = "ExactVAEApply"; // Make VAE Exact

/**
 * @param {any} root the outermost graph
 * @param {any} detail of an event: `display_node`, the node on the page, or `node`, the one that runs
 * @returns {any} null where there is no such node: another workflow is open, or it was deleted
 */
export function findCaller(root, detail) {
  return findNode(root, detail?.display_node) ?? findNode(root, detail?.node);
}

/**
 * The node itself where it can hold a panel, else the next Make VAE Exact before it.
 * @param {any} node
 * @param {WeakSet<any>} refused nodes on which a panel could not be put
 * @returns {any} null where there is none
 */
export function findPlace(node, refused) {
  if (node === null || canHold(node, refused)) return node;
  const seen = new Set([node]);
  const queue = [node];
  for (let before = queue.shift(); before !== undefined; before = queue.shift()) {
    if (before !== node && before.comfyClass === MAKER && canHold(before, refused)) return before;
    for (const source of sourcesOf(before)) {
      if (!seen.has(source)) queue.push(source);
      seen.add(source);
    }
  }
  return null;
}

/** @param {any} node @param {WeakSet<any>} refused */
function canHold(node, refused) {
  return typeof node.addDOMWidget === "function" && !refused.has(node);
}

/** @param {any} node @returns {any[]} the nodes that its inputs come from */
function sourcesOf(node) {
  const inputs = Array.isArray(node.inputs) ? node.inputs : [];
  return inputs.map((/** @type {any} */ _, /** @type {number} */ slot) => node.getInputNode?.(slot)).filter(Boolean);
}
