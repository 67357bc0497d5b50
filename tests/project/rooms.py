"""The house: rooms at the top of vae_model/, circles between files, contracts of pyproject.toml on what imports what.

`.venv/bin/python tests/project/rooms.py` prints them; its exit code is 0 where all is well. `run.py test` runs it.

A circle is a set of files of which each imports each other one, itself or by way of others; imports inside of functions
count. Imports for type checkers alone do not run, and are counted apart.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import grimp

LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"
"""The command lint-imports, also where scripts of installed packages are in another folder."""
MOST_ROOMS = 16
TOP = Path(__file__).resolve().parents[2] / "vae_model"


def rooms() -> list[str]:
    """The packages and files directly in vae_model/."""
    packages = (folder.name for folder in TOP.iterdir() if (folder / "__init__.py").is_file())
    return sorted([*packages, *(file.name for file in TOP.glob("*.py") if file.name != "__init__.py")])


def circles(*, types: bool) -> list[list[str]]:
    """The files of every circle, with or without the imports for type checkers."""
    graph = grimp.build_graph("exact_vae", exclude_type_checking_imports=not types, cache_dir=None)
    reached = {module: graph.find_upstream_modules(module) for module in graph.modules}
    found = {frozenset(other for other in reached[one] if one in reached[other]) | {one} for one in reached}
    return sorted(sorted(circle) for circle in found if len(circle) > 1)


def main() -> int:
    there, running, typed = rooms(), circles(types=False), circles(types=True)
    contracts = subprocess.run([sys.executable, "-c", LINT_IMPORTS, "--no-cache"], cwd=TOP.parent, check=False)
    print(f"rooms: {len(there)} of at most {MOST_ROOMS}: {', '.join(there)}")
    print(f"circles between files: {len(running)}; with imports for type checkers {len(typed)}")
    for circle in typed:
        print(f"  {', '.join(circle)}")
    return int(contracts.returncode != 0 or len(there) > MOST_ROOMS or bool(running))


if __name__ == "__main__":
    sys.exit(main())
