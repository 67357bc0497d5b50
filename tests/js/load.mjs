// Loads scripts of js/ into Node.js: a copy beside a package.json that says they are modules, as the page knows.

import { copyFileSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const JS = fileURLToPath(new URL("../../js/", import.meta.url));

export function load(name) {
  const folder = mkdtempSync(join(tmpdir(), "exact-vae-js-"));
  writeFileSync(join(folder, "package.json"), '{"type": "module"}');
  for (const file of readdirSync(JS)) if (file.endsWith(".js")) copyFileSync(join(JS, file), join(folder, file));
  process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
  return import(pathToFileURL(join(folder, name)).href);
}
