"""The files of `benchmarks`, which are scripts and no package."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
FILES = sorted(path.stem for path in FOLDER.glob("*.py"))


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """Every file of the benchmark as a module. They import each other by bare names, as scripts do."""
    before = {name: sys.modules.pop(name, None) for name in FILES}
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in FILES})
    finally:
        sys.path.remove(str(FOLDER))
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
