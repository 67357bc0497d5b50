"""Registers the repository root as the package `exact_vae`, the way the host loads it: by path, off sys.path."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

if "exact_vae" not in sys.modules:
    spec = importlib.util.spec_from_file_location(
        "exact_vae", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["exact_vae"] = module
    spec.loader.exec_module(module)

SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of photos and foreign weights beside the checkout; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared with photos and TAEF2 weights is absent")
    return SHARED
