// Nodes by the ids of the server, those inside subgraphs too; errors that stay ours.

import assert from "node:assert/strict";
import { test } from "node:test";
import { load } from "./load.mjs";

const { findNode, isOurs, listNodes } = await load("graph.js");
const { guard } = await load("guard.js");

function graph(...nodes) {
  return { nodes, getNodeById: (id) => nodes.find((node) => node.id === id) };
}

const inner = { id: 12, comfyClass: "ExactVAEDecode" };
const outer = { id: 3, subgraph: graph(inner) };
const alone = { id: 7, type: "VAEDecode" };
const root = graph(outer, alone);

test("a node is found by its number, as text or as number", () => {
  assert.equal(findNode(root, "7"), alone);
  assert.equal(findNode(root, 7), alone);
});

test("a node in a subgraph is found by its path", () => {
  assert.equal(findNode(root, "3:12"), inner);
});

test("nothing is found where nothing is", () => {
  for (const id of ["8", "7:12", "3:13", "", null, undefined, {}]) assert.equal(findNode(root, id), null);
  assert.equal(findNode(undefined, "7"), null);
});

test("all nodes are listed with their paths", () => {
  assert.deepEqual(listNodes(root).map(({ id }) => id), ["3", "3:12", "7"]);
  assert.deepEqual(listNodes(undefined), []);
});

test("ours are told by their class", () => {
  assert.deepEqual([inner, alone, null, {}].map(isOurs), [true, false, false, false]);
});

test("an error is told once and goes no further", (context) => {
  const warn = context.mock.method(console, "warn", () => {});
  const run = guard("drawing", () => {
    throw new Error("no");
  });
  assert.doesNotThrow(run);
  assert.doesNotThrow(run);
  assert.equal(warn.mock.callCount(), 1);
});
