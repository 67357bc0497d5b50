// The line on a node: on whichever node called, cleared when it begins, with the reason where it ended badly.

import assert from "node:assert/strict";
import { test } from "node:test";
import { makeGraph, Node, openPage, panelOf } from "./page.mjs";

const REPORT = { line: "exact · resident · 3.10 GiB · 12.4 s", exact: true, plan_bytes: 4, peak_bytes: 3, budget_bytes: 8, warnings: [] };

// Load VAE, Make VAE Exact, the core's decode behind it, one of ours, and a node that has nothing to do with VAEs.
async function workflow(...more) {
  const loader = new Node(1, "VAELoader");
  const made = new Node(2, "ExactVAEApply", { inputs: [{ from: loader }] });
  const core = new Node(3, "VAEDecode", { inputs: [{}, { from: made }] });
  const ours = new Node(4, "ExactVAEDecode", { inputs: [{}, { from: made }] });
  const other = new Node(5, "PreviewImage", { inputs: [{ from: core }] });
  const nodes = [loader, made, core, ours, other, ...more];
  const page = await openPage(makeGraph("workflow-1", ...nodes), "report.js");
  return { page, nodes, loader, made, core, ours, other };
}

function progress(page, node, fraction, more = {}) {
  page.send("exact_vae.progress", { node, display_node: node, prompt_id: "p", fraction, line: `exact · ${fraction}`, done: false, ...more });
}

function ran(page, node, report = REPORT, prompt_id = "p") {
  progress(page, node, 1, { done: true, report, prompt_id });
}

function stopped(page, node, fraction, why) {
  progress(page, node, fraction, { done: true, report: null, stopped: why });
}

function begin(page, prompt_id, ...nodes) {
  page.send("execution_start", { prompt_id });
  for (const node of nodes) page.send("executing", node);
}

test("a node of the core shows the line, and no more of it than the line", async () => {
  const { page, core, made, other } = await workflow();
  begin(page, "p", "3");
  progress(page, "3", 0.5, { plan_bytes: 4 });
  assert.deepEqual(panelOf(core), { line: "exact · 0.5", state: "running", track: false, legend: false, warnings: "" });
  ran(page, "3");
  page.send("execution_success", { prompt_id: "p" });
  assert.deepEqual(panelOf(core), { line: REPORT.line, state: "exact", track: false, legend: false, warnings: "" });
  assert.equal(panelOf(made), null);
  assert.equal(panelOf(other), null);
});

test("a node of ours shows its memory, too", async () => {
  const { page, ours } = await workflow();
  begin(page, "p", "4");
  progress(page, "4", 0.5);
  page.send("executed", { node: "4", display_node: "4", output: { exact_vae: [REPORT] } });
  assert.deepEqual(panelOf(ours), { line: REPORT.line, state: "exact", track: true, legend: true, warnings: "" });
});

test("the node on the page shows what a node that it made did", async () => {
  const { page, core } = await workflow();
  begin(page, "p", "3");
  page.send("exact_vae.progress", { node: "3.0.0.7", display_node: "3", prompt_id: "p", fraction: 1, done: true, report: REPORT });
  assert.equal(panelOf(core).line, REPORT.line);
});

test("warnings and inexact runs are told on any node", async () => {
  const { page, core } = await workflow();
  begin(page, "p", "3");
  ran(page, "3", { line: "host's own method · video", exact: false, warnings: ["NaN came in."] });
  assert.deepEqual([panelOf(core).state, panelOf(core).warnings], ["other", "NaN came in."]);
});

test("a node that runs several times tells of how many, the inexact one first", async () => {
  const { page, core } = await workflow();
  begin(page, "p", "3");
  ran(page, "3");
  ran(page, "3");
  assert.equal(panelOf(core).line, `${REPORT.line} · 2 runs`);
  ran(page, "3", { line: "host's own method", exact: false });
  ran(page, "3");
  assert.equal(panelOf(core).line, "host's own method · 4 runs");
  begin(page, "q", "3");
  ran(page, "3", REPORT, "q");
  assert.equal(panelOf(core).line, REPORT.line);
});

test("where a node takes no panel, Make VAE Exact before it shows the line", async () => {
  const plain = new Node(6, "OldNode", { addDOMWidget: undefined });
  const broken = new Node(7, "Broken", { addDOMWidget: () => { throw new Error("no"); } });
  const { page, made, core } = await workflow(plain, broken);
  plain.inputs = [{ from: core }];
  broken.inputs = [{ from: made }];
  for (const id of ["6", "7"]) {
    begin(page, id, id);
    ran(page, id, { ...REPORT, line: `told by ${id}` }, id);
    assert.equal(panelOf(made).line, `told by ${id}`);
    assert.equal(panelOf(core), null);
  }
});

test("nothing is shown for nodes that are not there, or where no Make VAE Exact is", async () => {
  const lonely = new Node(6, "OldNode", { addDOMWidget: undefined });
  const { page, nodes } = await workflow(lonely);
  for (const id of ["6", "99", "3:4", null, undefined]) ran(page, id);
  assert.deepEqual(nodes.map(panelOf), nodes.map(() => null));
});

for (const [what, id] of [["ours", "4"], ["the core's", "3"]]) {
  test(`a run that begins clears the line of the one before: a node of ${what}`, async () => {
    const { page, nodes } = await workflow();
    const node = nodes[Number(id) - 1];
    begin(page, "p", id);
    ran(page, id);
    begin(page, "q", id);
    assert.deepEqual(panelOf(node), { line: "running", state: "running", track: false, legend: false, warnings: "" });
  });

  test(`a run that fails before it tells anything shows why: a node of ${what}`, async () => {
    const { page, nodes } = await workflow();
    const node = nodes[Number(id) - 1];
    begin(page, "p", id);
    ran(page, id);
    begin(page, "q", id);
    page.send("execution_error", { prompt_id: "q", node_id: id, exception_message: "decode: expected 4 channels, got 3\n" });
    assert.deepEqual([panelOf(node).line, panelOf(node).state], ["failed · decode: expected 4 channels, got 3", "failed"]);
  });

  test(`a run that fails on its way shows why: a node of ${what}`, async () => {
    const { page, nodes } = await workflow();
    const node = nodes[Number(id) - 1];
    begin(page, "p", id);
    progress(page, id, 0.57);
    stopped(page, id, 0.57, "ran out");
    assert.equal(panelOf(node).line, "stopped at 57% · ran out");
    page.send("execution_error", { prompt_id: "p", node_id: id, exception_message: "decode: ran out" });
    assert.deepEqual([panelOf(node).line, panelOf(node).state], ["failed · decode: ran out", "failed"]);
  });

  test(`a cancelled run says so until the next begins: a node of ${what}`, async () => {
    const { page, nodes } = await workflow();
    const node = nodes[Number(id) - 1];
    begin(page, "p", id);
    progress(page, id, 0.57);
    stopped(page, id, 0.57, "cancelled");
    page.send("execution_interrupted", { prompt_id: "p", node_id: id });
    assert.deepEqual([panelOf(node).line, panelOf(node).state], ["cancelled at 57%", "other"]);
    begin(page, "q");
    assert.equal(panelOf(node), null);
  });
}

test("a cancel without a last word of the run is told, too", async () => {
  const { page, ours } = await workflow();
  begin(page, "p", "4");
  progress(page, "4", 0.2);
  page.send("execution_interrupted", { prompt_id: "p", node_id: "4" });
  assert.equal(panelOf(ours).line, "cancelled at 20%");
});

test("a node of others that this time ran no VAE has no line at the end", async () => {
  const { page, core, other } = await workflow();
  begin(page, "p", "3");
  ran(page, "3");
  begin(page, "q", "3", "5");
  page.send("execution_success", { prompt_id: "q" });
  assert.deepEqual([panelOf(core), panelOf(other)], [null, null]);
});

test("a node that fails and has nothing to do with a VAE is left alone", async () => {
  const { page, other } = await workflow();
  begin(page, "p", "5");
  page.send("execution_error", { prompt_id: "p", node_id: "5", exception_message: "no" });
  assert.equal(panelOf(other), null);
});

test("a line that is right stays while other nodes run", async () => {
  const { page, core, ours } = await workflow();
  begin(page, "p", "3");
  ran(page, "3");
  begin(page, "q", "4"); // 3 comes from the host's cache
  ran(page, "4", REPORT, "q");
  page.send("execution_success", { prompt_id: "q" });
  assert.deepEqual([panelOf(core).line, panelOf(ours).line], [REPORT.line, REPORT.line]);
});

test("nothing of it is saved, and no value comes after it", async () => {
  const { page, core } = await workflow();
  begin(page, "p", "3");
  ran(page, "3");
  core.widgets.push({ name: "added later", value: 7 });
  ran(page, "3");
  assert.deepEqual(core.widgets.map(({ name }) => name), ["added later", "exact_vae_report"]);
  assert.equal(core.widgets[1].serialize, false);
  assert.equal(core.widgets[1].options.serialize, false);
});

test("a node whose widgets were all taken off gets its line again", async () => {
  const { page, core } = await workflow();
  begin(page, "p", "3");
  ran(page, "3");
  core.widgets.length = 0;
  ran(page, "3");
  assert.equal(panelOf(core).line, `${REPORT.line} · 2 runs`);
});

test("undo makes new nodes: they have the lines of the old ones, those of other workflows have not", async () => {
  const { page } = await workflow();
  begin(page, "p", "3");
  ran(page, "3");
  const again = new Node(3, "VAEDecode");
  for (const [graph, line] of [[makeGraph("workflow-1", again), REPORT.line], [makeGraph("workflow-2", new Node(3, "VAEDecode"))]]) {
    page.app.rootGraph = graph;
    page.extensions[0].afterConfigureGraph();
    await new Promise((done) => setTimeout(done, 5));
    assert.equal(panelOf(graph.nodes[0])?.line, line);
  }
});

test("switched off, nothing is drawn on any node; switched on, the last lines are", async () => {
  const { page, core, ours } = await workflow();
  const [setting] = page.extensions[0].settings;
  begin(page, "p", "3", "4");
  ran(page, "3");
  setting.onChange(false);
  ran(page, "4");
  assert.deepEqual([panelOf(core), panelOf(ours)], [null, null]);
  setting.onChange(true);
  assert.deepEqual([panelOf(core).line, panelOf(ours).line], [REPORT.line, REPORT.line]);
});

test("the plan is cleared when the next begins, and says why there is none", async () => {
  const node = new Node(1, "ExactVAEPlan");
  const page = await openPage(makeGraph("w", node), "plan.js");
  const text = () => node.widgets[0].element.textContent;
  page.send("executed", { node: "1", display_node: "1", output: { text: ["level 0"] } });
  assert.equal(text(), "level 0");
  page.send("executing", "1");
  assert.equal(text(), "");
  page.send("execution_error", { node_id: "1", exception_message: "plan: expected a VAE, got None\n" });
  assert.equal(text(), "plan: expected a VAE, got None");
  page.send("execution_error", { node_id: "2", exception_message: "not ours" });
  assert.equal(text(), "plan: expected a VAE, got None");
});
