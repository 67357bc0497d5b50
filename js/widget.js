// @ts-check
// An element on a node, as high as its content, that is never saved with the workflow.

const MARGIN = 8;

/**
 * @typedef {{remove: () => void, isThere: () => boolean, keepLast: () => void}} Placed
 * remove: takes the element off the node again. isThere: whether it still is on the node. keepLast: the host counts
 * widgets to save their values, this one too, but not when it reads them back: none with a value may come after it.
 */

/**
 * @param {any} node
 * @param {string} name
 * @param {import("./style.js").Box} box
 * @returns {Placed}
 */
export function addPanel(node, name, { element, content }) {
  let height = 30;
  /** @type {{before: number, after: number} | null} */
  let grown = null;
  const total = () => height + 2 * MARGIN;
  const widget = node.addDOMWidget(name, "exact_vae_panel", element, {
    serialize: false, // Not sent with the prompt,
    hideInPanel: true, // and no parameter of the node.
    margin: MARGIN,
    getMinHeight: total,
    getMaxHeight: total,
    getValue: () => "",
    setValue: () => {},
  });
  widget.serialize = false; // Nor is it written into the workflow.

  const fit = () => {
    if (nodesAreElements()) return;
    const wanted = node.computeSize()[1];
    const untouched = grown !== null && node.size[1] === grown.after;
    if (!untouched && node.size[1] >= wanted) return;
    const before = untouched ? /** @type {any} */ (grown).before : node.size[1];
    node.setSize([node.size[0], Math.max(before, wanted)]);
    grown = { before, after: node.size[1] };
    node.setDirtyCanvas?.(true, true);
  };

  const observer = new ResizeObserver(() => {
    const natural = Math.ceil(content.offsetHeight);
    if (natural === 0 || natural === height) return; // 0 while it is out of sight.
    height = natural;
    fit();
  });
  observer.observe(content);
  fit();

  const remove = () => {
    observer.disconnect();
    if (node.widgets?.includes(widget)) node.removeWidget(widget);
    element.remove();
    if (grown !== null && node.size[1] === grown.after && !nodesAreElements()) {
      node.setSize([node.size[0], Math.max(grown.before, node.computeSize()[1])]);
    }
    node.setDirtyCanvas?.(true, true);
  };

  const isThere = () => Boolean(node.widgets?.includes(widget));

  const keepLast = () => {
    if (!isThere() || node.widgets[node.widgets.length - 1] === widget) return;
    node.widgets.splice(node.widgets.indexOf(widget), 1);
    node.widgets.push(widget);
  };

  return { remove, isThere, keepLast };
}

/** Nodes 2.0: the page lays out the nodes itself, from the height of what is on them. */
function nodesAreElements() {
  return Boolean(/** @type {any} */ (globalThis).LiteGraph?.vueNodesMode);
}
