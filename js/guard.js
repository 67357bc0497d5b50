// @ts-check
// An error in what we draw must not stop the page, nor fill its console.

const told = new Set();

/**
 * The function, with its errors written to the console once per kind instead of thrown.
 * @template {any[]} A
 * @param {string} what
 * @param {(...args: A) => unknown} run
 * @returns {(...args: A) => void}
 */
export function guard(what, run) {
  return (...args) => {
    try {
      run(...args);
    } catch (error) {
      const text = `ExactVAE: ${what}: ${error}`;
      if (!told.has(text)) console.warn(text, error);
      told.add(text);
    }
  };
}
