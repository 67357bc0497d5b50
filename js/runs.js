// @ts-check
// What is known of the runs of a node, and keeping it while the page makes its nodes anew. No imports, so that tests
// need no page.

const KEPT_NODES = 500;

/** @typedef {{prompt: unknown, count: number, report: Record<string, any>}} Runs */

/**
 * One more run of a node. Of several in one prompt the first that was not exact stays, else the last.
 * @param {Runs | undefined} runs of the same node before
 * @param {unknown} prompt
 * @param {Record<string, any>} report
 * @returns {Runs}
 */
export function addRun(runs, prompt, report) {
  if (runs === undefined || runs.prompt !== prompt) return { prompt, count: 1, report };
  return { prompt, count: runs.count + 1, report: runs.report.exact === false ? runs.report : report };
}

/**
 * The report to show, with the number of runs in its line where there were several.
 * @param {Runs} runs
 */
export function reportOf({ count, report }) {
  return count === 1 ? report : { ...report, line: `${report.line} · ${count} runs` };
}

/**
 * The reports of a node's `ui` output as one (a node that ran over a list sends one per run).
 * @param {unknown} reports
 * @returns {Record<string, any> | null}
 */
export function chooseReport(reports) {
  if (!Array.isArray(reports)) return null;
  /** @type {Runs | undefined} */
  let runs;
  for (const report of reports.filter(isReport)) runs = addRun(runs, null, report);
  return runs === undefined ? null : reportOf(runs);
}

/** @param {any} report @returns {report is Record<string, any>} */
export function isReport(report) {
  return typeof report?.line === "string";
}

/**
 * Reports by the node's place in its workflow: undo, and switching between workflows, make new nodes.
 * @returns {{put: (root: any, id: string, node: any, report: any) => void,
 *   get: (root: any, id: string, node: any) => any, drop: (root: any, id: string, node: any) => void}}
 */
export function createKeeper() {
  /** @type {Map<string, any>} */
  const kept = new Map();
  // Workflows without an id of their own, as a cleared one, cannot be told apart: for them nothing is kept.
  const key = (/** @type {any} */ root, /** @type {string} */ id, /** @type {any} */ node) =>
    /[^0-]/.test(String(root?.id ?? "")) ? `${root.id} ${id} ${node?.type}` : null;
  return {
    put(root, id, node, report) {
      const name = key(root, id, node);
      if (name === null) return;
      kept.delete(name);
      kept.set(name, report);
      if (kept.size > KEPT_NODES) kept.delete(kept.keys().next().value ?? "");
    },
    get: (root, id, node) => kept.get(key(root, id, node) ?? "") ?? null,
    drop(root, id, node) {
      kept.delete(key(root, id, node) ?? "");
    },
  };
}
