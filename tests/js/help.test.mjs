// The help pages that ComfyUI shows beside a node: one per node id, naming every input.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";

const JS = new URL("../../js/", import.meta.url);
const TILES = ["tile_size", "overlap", "temporal_size", "temporal_overlap", "method", "memory"];
const INPUTS = {
  ExactVAELoader: ["vae_name", "dtype"],
  ExactVAEEncode: ["pixels", "vae", "memory"],
  ExactVAEDecode: ["samples", "vae", "memory"],
  ExactVAEEncodeTiled: ["pixels", "vae", ...TILES],
  ExactVAEDecodeTiled: ["samples", "vae", ...TILES],
  ExactVAEEncodeForInpaint: ["pixels", "vae", "mask", "grow_mask_by", "memory"],
  ExactVAEApply: ["vae", "memory"],
  ExactVAEPlan: ["vae", "width", "height", "direction", "memory"],
};

function page(id) {
  return readFileSync(new URL(`docs/${id}.md`, JS), "utf8");
}

// The first cell of each row in the table under the heading "Inputs", without quotes.
function inputsTable(text) {
  const lines = text.split(/\r?\n/);
  const start = lines.findIndex((line) => /^#+\s+inputs\s*$/i.test(line));
  if (start < 0) return [];
  const length = lines.slice(start + 1).findIndex((line) => /^#/.test(line));
  const section = lines.slice(start + 1, length < 0 ? undefined : start + 1 + length);
  return section.filter((line) => line.startsWith("|")).map((line) => line.split("|")[1].replace(/[`*\s]/g, ""));
}

for (const [id, inputs] of Object.entries(INPUTS)) {
  test(`${id}: begins with a heading of the first level`, () => {
    assert.match(page(id), /^# \S/);
  });

  test(`${id}: the table of inputs names every input, in order`, () => {
    const named = inputsTable(page(id));
    assert.deepEqual(named.filter((name) => inputs.includes(name)), inputs);
  });

  test(`${id}: says what to do when something is wrong`, () => {
    assert.match(page(id), /^## When something is wrong$/m);
  });

  test(`${id}: shows no picture from elsewhere`, () => {
    assert.doesNotMatch(page(id), /!\[[^\]]*\]\(\s*<?(https?:)?\/\//i);
    assert.doesNotMatch(page(id), /<(img|video|source)[^>]*\ssrc\s*=\s*["']?(https?:)?\/\//i);
  });
}

test("js/ holds scripts, and the help pages in docs/", () => {
  const entries = readdirSync(JS, { withFileTypes: true });
  const strange = entries.filter((entry) => !(entry.isDirectory() ? entry.name === "docs" : entry.name.endsWith(".js")));
  assert.deepEqual(strange.map((entry) => entry.name), []);
});

test("docs/ holds one page for each node and no other", () => {
  assert.deepEqual(readdirSync(new URL("docs/", JS)).sort(), Object.keys(INPUTS).map((id) => `${id}.md`).sort());
});
