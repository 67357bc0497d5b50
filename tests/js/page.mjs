// A page as small as it goes: elements, the host's two scripts, a graph, and the events that a server would send.

import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const JS = fileURLToPath(new URL("../../js/", import.meta.url));

class Element {
  attributes = {};
  children = [];
  dataset = {};
  style = {};
  hidden = false;
  offsetHeight = 0;
  #text = "";

  constructor(tag) {
    this.tag = tag;
    const names = new Set();
    this.classList = { add: (...added) => added.forEach((name) => names.add(name)), contains: (name) => names.has(name) };
  }
  get textContent() {
    return this.#text + this.children.map((child) => child.textContent).join("");
  }
  set textContent(text) {
    this.children = [];
    this.#text = String(text);
  }
  get firstElementChild() {
    return this.children[0] ?? null;
  }
  append(...nodes) {
    for (const node of nodes) this.children.push(typeof node === "string" ? { textContent: node, children: [] } : node);
  }
  replaceChildren(...nodes) {
    this.children = [];
    this.append(...nodes);
  }
  setAttribute(name, value) {
    this.attributes[name] = value;
  }
  removeAttribute(name) {
    delete this.attributes[name];
  }
  remove() {}
  // The first element of ours with a class name, in depth.
  find(name) {
    if (this.classList.contains(name)) return this;
    for (const child of this.children) {
      const found = child instanceof Element ? child.find(name) : null;
      if (found) return found;
    }
    return null;
  }
}

export class Node {
  widgets = [];
  size = [200, 100];
  inputs = [];

  constructor(id, comfyClass, more = {}) {
    Object.assign(this, { id, comfyClass, type: comfyClass }, more);
  }
  addDOMWidget(name, type, element, options) {
    const widget = { name, element, options };
    this.widgets.push(widget);
    return widget;
  }
  removeWidget(widget) {
    this.widgets.splice(this.widgets.indexOf(widget), 1);
  }
  computeSize() {
    return [200, 60 + 40 * this.widgets.length];
  }
  setSize(size) {
    this.size = size;
  }
  getInputNode(slot) {
    return this.inputs[slot]?.from ?? null;
  }
}

export function makeGraph(id, ...nodes) {
  return { id, nodes, getNodeById: (wanted) => nodes.find((node) => node.id === wanted) };
}

// Runs the scripts, each page with modules of its own.
export async function openPage(graph, ...scripts) {
  globalThis.HTMLElement = Element;
  globalThis.ResizeObserver = class {
    observe() {}
    disconnect() {}
  };
  globalThis.document = { createElement: (tag) => new Element(tag), getElementById: () => ({}), head: new Element("head") };
  const listeners = new Map();
  const extensions = [];
  globalThis.exactVaeStubs = {
    api: { addEventListener: (name, run) => listeners.set(name, [...(listeners.get(name) ?? []), run]) },
    app: { rootGraph: graph, nodeOutputs: {}, registerExtension: (extension) => extensions.push(extension) },
  };
  const folder = mkdtempSync(join(tmpdir(), "exact-vae-page-"));
  process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
  writeFileSync(join(folder, "package.json"), '{"type": "module"}');
  for (const name of ["scripts", "extensions/exact-vae"]) mkdirSync(join(folder, name), { recursive: true });
  for (const name of ["api", "app"]) {
    writeFileSync(join(folder, "scripts", `${name}.js`), `export const ${name} = globalThis.exactVaeStubs.${name};`);
  }
  const ours = join(folder, "extensions/exact-vae");
  for (const file of readdirSync(JS)) if (file.endsWith(".js")) copyFileSync(join(JS, file), join(ours, file));
  for (const script of scripts) await import(pathToFileURL(join(ours, script)).href);
  for (const extension of extensions) extension.setup?.();
  return {
    app: globalThis.exactVaeStubs.app,
    extensions,
    send: (name, detail) => (listeners.get(name) ?? []).forEach((run) => run({ detail })),
  };
}

// What our panel on a node says, and in which state; null where there is none.
export function panelOf(node) {
  const element = node.widgets.find((widget) => widget.name === "exact_vae_report")?.element;
  if (element === undefined) return null;
  const seen = (name) => !element.find(name).hidden;
  return {
    line: element.find("exact-vae-line").textContent,
    state: element.dataset.state,
    track: seen("exact-vae-track"),
    legend: seen("exact-vae-legend"),
    warnings: element.find("exact-vae-warnings").textContent,
  };
}
