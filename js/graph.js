// @ts-check
// Finding nodes by the ids that the server uses. No imports, so that tests need no page.

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
