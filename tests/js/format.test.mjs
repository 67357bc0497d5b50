// Numbers and lists as text: the modules in js/ that need no page.

import assert from "node:assert/strict";
import { test } from "node:test";
import { load } from "./load.mjs";

const { clampFraction, formatBytes, formatPercent, joinText, memoryMarks } = await load("format.js");

test("bytes: two digits or more, in the unit that keeps the number below 1024", () => {
  const expected = [
    [0, "0 B"],
    [1023, "1023 B"],
    [1023.6, "1.0 KiB"],
    [1024, "1.0 KiB"],
    [1536, "1.5 KiB"],
    [9.96 * 1024, "10 KiB"],
    [12.4 * 2 ** 20, "12 MiB"],
    [1023 * 2 ** 20, "1023 MiB"],
    [1023.7 * 2 ** 20, "1.0 GiB"],
    [3.1 * 2 ** 30, "3.1 GiB"],
    [5000 * 2 ** 40, "5000 TiB"],
  ];
  for (const [bytes, text] of expected) assert.equal(formatBytes(bytes), text);
});

test("bytes: nothing for what is no amount", () => {
  for (const value of [null, undefined, NaN, Infinity, -1, "1024", {}]) assert.equal(formatBytes(value), null);
});

test("fractions stay between 0 and 1", () => {
  for (const [value, share] of [[0.42, 0.42], [0, 0], [1, 1], [7, 1], [-1, 0], [NaN, 0], [null, 0], ["1", 0]]) {
    assert.equal(clampFraction(value), share);
  }
});

test("percent: rounded down, so that 100% means done", () => {
  assert.deepEqual([0, 0.29, 0.429, 0.57, 0.999, 1].map(formatPercent), ["0%", "29%", "42%", "57%", "99%", "100%"]);
});

test("memory: shares of the largest amount, peak first", () => {
  assert.deepEqual(memoryMarks({ budget_bytes: 4096, plan_bytes: 2048, peak_bytes: 1024 }), [
    { name: "peak", text: "peak 1.0 KiB", share: 0.25 },
    { name: "plan", text: "plan 2.0 KiB", share: 0.5 },
    { name: "budget", text: "budget 4.0 KiB", share: 1 },
  ]);
});

test("memory: a peak above the budget is the whole bar", () => {
  const shares = memoryMarks({ budget_bytes: 1, peak_bytes: 2 }).map(({ share }) => share);
  assert.deepEqual(shares, [1, 0.5]);
});

test("memory: what is not known is left out, a measured nothing is not", () => {
  assert.deepEqual(memoryMarks({ budget_bytes: null, peak_bytes: undefined }), []);
  assert.deepEqual(memoryMarks({ plan_bytes: 1024, peak_bytes: null }).map(({ name }) => name), ["plan"]);
  assert.deepEqual(memoryMarks({ plan_bytes: 1024, peak_bytes: 0 }).map(({ text }) => text), ["peak 0 B", "plan 1.0 KiB"]);
  assert.deepEqual(memoryMarks({ peak_bytes: 0 }).map(({ share }) => share), [0]);
});

test("text: paragraphs joined, anything else left out", () => {
  assert.equal(joinText(["a", "b"]), "a\nb");
  assert.equal(joinText("a"), "a");
  for (const value of [undefined, null, [], [1, null]]) assert.equal(joinText(value), "");
});
