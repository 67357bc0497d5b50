// The scripts as ComfyUI loads them: modules, small, that change nothing of the page's own classes.

import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { test } from "node:test";

const JS = new URL("../../js/", import.meta.url);
const SCRIPTS = readdirSync(JS).filter((name) => name.endsWith(".js"));
const HOST = ["../../scripts/api.js", "../../scripts/app.js"];

for (const name of SCRIPTS) {
  const text = readFileSync(new URL(name, JS), "utf8");

  test(`${name}: is checked, and short`, () => {
    assert.match(text, /^\/\/ @ts-check\n/);
    assert.ok(text.split("\n").length <= 300);
  });

  test(`${name}: patches no class and writes no markup`, () => {
    assert.doesNotMatch(text, /\.prototype\b|beforeRegisterNodeDef|innerHTML|outerHTML|insertAdjacentHTML|\beval\b/);
  });

  test(`${name}: imports only what is there`, () => {
    const imports = [...text.matchAll(/\bfrom\s+"([^"]+)"/g)].map((match) => match[1]);
    const known = [...HOST, ...SCRIPTS.map((file) => `./${file}`)];
    assert.deepEqual(imports.filter((path) => !known.includes(path)), []);
  });

  test(`${name}: asks nothing of other servers`, () => {
    assert.doesNotMatch(text, /https?:|\bfetch\(|XMLHttpRequest|@import|url\(/);
  });
}
