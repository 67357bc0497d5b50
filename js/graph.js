// @ts-check
// Finding nodes: by the ids that the server uses, and the one that shows a run, whichever pack's it is. No imports, so
// that tests need no page.

const MAKER = "ExactVAEApply"; // Make VAE Exact

/**
 * The node of an execution id: "7", or "3:12" for node 12 inside the subgraph of node 3.
 * @param {any} root the outermost graph
 * @param {unknown} id
 * @returns {any} null if there is no such node (another workflow is open, or it was deleted)
 */
export function findNode(root, id) {
  let graph = root;
  let node = null;
  for (const part of String(id ?? "").split(":")) {
    node = graph?.getNodeById?.(part) ?? graph?.getNodeById?.(Number(part)) ?? null;
    if (node === null) return null;
    graph = node.subgraph;
  }
  return node;
}

/**
 * Every node, those inside subgraphs too, with its execution id.
 * @param {any} root
 * @returns {{id: string, node: any}[]}
 */
export function listNodes(root, prefix = "") {
  return (root?.nodes ?? []).flatMap((/** @type {any} */ node) => {
    const id = `${prefix}${node.id}`;
    return [{ id, node }, ...(node.subgraph ? listNodes(node.subgraph, `${id}:`) : [])];
  });
}

/**
 * Whether a node is one of this pack.
 * @param {any} node
 */
export function isOurs(node) {
  return String(node?.comfyClass ?? node?.type ?? "").startsWith("ExactVAE");
}

/**
 * The node that called for a run.
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
