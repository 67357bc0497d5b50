"""How long `exact-vae plan` takes as a whole, against `import torch` alone: `python benchmarks/start.py [times]`.

Both are started in turn, so that a busy machine is as busy for one as for the other. CPU seconds count what the process
itself did and hold still where wall seconds do not.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

TIMES = 7
COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "exact-vae plan": [sys.executable, "-m", "exact_vae", "plan", "--size", "1024x1024", "--device", "cpu", "--quiet"],
}


def cost(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process. Compiled Python files are used, as in an installed package."""
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, started = os.times(), time.perf_counter()
    subprocess.run(command, check=True, env=surroundings)
    wall, after = time.perf_counter() - started, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Print the medians and what they are of the first one's."""
    times = int(sys.argv[1]) if len(sys.argv) > 1 else TIMES
    for command in COMMANDS.values():
        cost(command)  # files come into the cache, Python files are compiled
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(times):
        for name, command in COMMANDS.items():
            found[name].append(cost(command))
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    first = medians["import torch"]
    print(f"{'':16} {'wall s':>8} {'CPU s':>8} {'wall x':>8} {'CPU x':>8}   (medians of {times}, in turn)")
    for name, (wall, cpu) in medians.items():
        print(f"{name:16} {wall:8.2f} {cpu:8.2f} {wall / first[0]:8.2f} {cpu / first[1]:8.2f}")


if __name__ == "__main__":
    main()
