// Reports of several runs as one, and reports that outlive the nodes they were made for.

import assert from "node:assert/strict";
import { test } from "node:test";
import { load } from "./load.mjs";

const { chooseReport, createKeeper } = await load("runs.js");

test("reports: the only one as it is", () => {
  const report = { line: "exact · resident", exact: true };
  assert.equal(chooseReport([report]), report);
});

test("reports: of several the one that was not exact, with their number", () => {
  const good = { line: "exact", exact: true };
  const other = { line: "host's own method", exact: false };
  assert.equal(chooseReport([good, other, good]).line, "host's own method · 3 runs");
  assert.equal(chooseReport([good, { line: "last", exact: true }]).line, "last · 2 runs");
  assert.equal(good.line, "exact");
});

test("reports: nothing from anything else", () => {
  for (const value of [undefined, null, [], {}, "text", [null], [{}], [{ line: 1 }]]) assert.equal(chooseReport(value), null);
});

test("kept: by workflow, place and kind of node", () => {
  const keeper = createKeeper();
  const [one, other] = [{ id: "a" }, { id: "b" }];
  const node = { type: "VAEDecode" };
  keeper.put(one, "3:4", node, "report");
  assert.equal(keeper.get(one, "3:4", node), "report");
  assert.equal(keeper.get(other, "3:4", node), null);
  assert.equal(keeper.get(one, "3:5", node), null);
  assert.equal(keeper.get(one, "3:4", { type: "VAEEncode" }), null);
  keeper.drop(one, "3:4", node);
  assert.equal(keeper.get(one, "3:4", node), null);
});

test("kept: nothing for workflows without an id, and not without end", () => {
  const keeper = createKeeper();
  const node = { type: "VAEDecode" };
  for (const root of [{}, null, { id: "00000000-0000-0000-0000-000000000000" }]) {
    keeper.put(root, "1", node, "report");
    assert.equal(keeper.get(root, "1", node), null);
  }
  for (let id = 0; id < 600; id += 1) keeper.put({ id: "a" }, String(id), node, id);
  assert.deepEqual([keeper.get({ id: "a" }, "99", node), keeper.get({ id: "a" }, "100", node)], [null, 100]);
});
