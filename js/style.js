// @ts-check
// The look of what we draw on nodes. Text and ground are the theme's own for input fields (Nodes 2.0 has a ground of its
// own), so it is as readable as they are, whatever colour the node has. The fills lean towards the colour of the text,
// and so away from the ground, in dark themes and in light ones.

const ID = "exact-vae-style";

const CSS = `
.exact-vae {
  --exact-vae-good: color-mix(in srgb, #12a54c 60%, currentColor);
  --exact-vae-other: color-mix(in srgb, #d97a00 60%, currentColor);
  --exact-vae-bad: color-mix(in srgb, #e5252a 60%, currentColor);
  --exact-vae-fill: color-mix(in srgb, #3b82f6 60%, currentColor);
  box-sizing: border-box;
  overflow: hidden;
  border-radius: 6px;
  background: var(--comfy-input-bg, #222);
  color: var(--input-text, #ddd);
  font: 11px/15px Inter, Arial, sans-serif;
  text-align: start;
  user-select: text;
}
[data-node-id] .exact-vae { background: var(--component-node-widget-background, var(--comfy-input-bg, #222)); }
.exact-vae-content { display: grid; gap: 5px; padding: 6px 7px 7px; }
.exact-vae-line { display: flex; gap: 6px; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.exact-vae-dot {
  box-sizing: border-box; flex: none; width: 8px; height: 8px; margin-top: 3.5px;
  border: 2px solid var(--exact-vae-fill); border-radius: 50%;
}
.exact-vae-dot[data-state="exact"] { border-color: var(--exact-vae-good); background: var(--exact-vae-good); }
.exact-vae-dot[data-state="other"] { border-color: var(--exact-vae-other); }
.exact-vae-dot[data-state="failed"] { border-color: var(--exact-vae-bad); background: var(--exact-vae-bad); }
.exact-vae-track {
  position: relative; height: 6px; overflow: hidden; border-radius: 3px;
  background: color-mix(in srgb, currentColor 16%, transparent);
}
.exact-vae-track > * { position: absolute; inset: 0 auto 0 0; }
.exact-vae-done, .exact-vae-peak { background: var(--exact-vae-fill); }
.exact-vae-plan { background: color-mix(in srgb, var(--exact-vae-fill) 45%, transparent); }
.exact-vae-track > .exact-vae-budget { width: 2px; margin-left: -2px; background: currentColor; }
.exact-vae-legend { display: flex; flex-wrap: wrap; gap: 0 7px; font-size: 10px; line-height: 13px; }
.exact-vae-legend > span { display: flex; align-items: center; gap: 3px; white-space: nowrap; }
.exact-vae-swatch { width: 6px; height: 6px; border-radius: 1px; }
.exact-vae-swatch.exact-vae-budget { width: 2px; height: 9px; background: currentColor; }
.exact-vae-warnings { display: grid; gap: 3px; }
.exact-vae-warning { border-inline-start: 2px solid var(--exact-vae-other); padding-inline-start: 6px; }
.exact-vae-text {
  margin: 0; overflow-x: auto; white-space: pre; font: 11px/15px ui-monospace, Consolas, Menlo, monospace;
}
.exact-vae [hidden], .exact-vae-warnings:empty { display: none; }
`;

/** Puts the rules into the page, once. */
function addStyle() {
  if (document.getElementById(ID)) return;
  const style = document.createElement("style");
  style.id = ID;
  style.textContent = CSS;
  document.head.append(style);
}

/**
 * A new element with our class names.
 * @param {string} tag
 * @param {...string} names without the prefix
 */
export function make(tag, ...names) {
  const element = document.createElement(tag);
  element.classList.add(...names.map((name) => (name ? `exact-vae-${name}` : "exact-vae")));
  return element;
}

/** @typedef {{element: HTMLElement, content: HTMLElement}} Box what a node shows, and what has the natural height */
/** @param {string} label for screen readers @returns {Box} */
export function makeBox(label) {
  addStyle();
  const element = make("div", "");
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", label);
  const content = make("div", "content");
  element.append(content);
  return { element, content };
}
