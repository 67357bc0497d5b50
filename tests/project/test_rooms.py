"""The house: few rooms, no circles, and contracts each of which can be broken."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from exact_vae.tests.project.rooms import LINT_IMPORTS, MOST_ROOMS, circles, rooms

ROOT = Path(__file__).resolve().parents[2]

BREAKING = {
    "Doors stand above model_management, and that above vae_model": (
        ("vae_model/runs/checks.py", "from ...model_management import memory"),
        ("model_management/memory.py", "from .. import commands"),
    ),
    "The rooms of vae_model": (
        ("vae_model/files/atomic.py", "from ..families import table"),
        ("vae_model/kernels/products.py", "from ..exact import layer"),
    ),
    "The engine knows no host and no file": (("vae_model/exact/layer.py", "from ..files import atomic"),),
    "The stream names no op": (("vae_model/exact/stream/run.py", "from ..ops import attend"),),
    "Nodes do not know each other": (("nodes/decode.py", "from . import encode"),),
    "One file knows ComfyUI": (("vae_model/vae.py", "def late():\n    import comfy.utils"),),
}
"""Contract -> lines that break it, each at the end of a file."""


def test_few_rooms_stand_at_the_top_of_vae_model() -> None:
    assert 10 < len(rooms()) <= MOST_ROOMS


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert circles(types=False) == []


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the product's Python files and of the contracts, to be broken."""
    folder = tmp_path_factory.mktemp("house")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for top in ("__init__.py", "__main__.py", "commands", "model_management", "nodes", "vae_model"):
        for file in (ROOT / top).rglob("*.py") if (ROOT / top).is_dir() else [ROOT / top]:
            copy = folder / "exact_vae" / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    return folder


def lint(house: Path) -> dict[str, str]:
    """Contract -> KEPT or BROKEN."""
    surroundings = {**os.environ, "PYTHONPATH": str(house), "COLUMNS": "200"}
    command = [sys.executable, "-c", LINT_IMPORTS, "--no-cache"]
    done = subprocess.run(command, cwd=house, env=surroundings, capture_output=True, text=True, check=False)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)  # older versions colour what no terminal shows
    lines = [line.split(" (")[0].rstrip().rpartition(" ") for line in plain.splitlines()]
    found = {name: word for name, _, word in lines if word in ("KEPT", "BROKEN")}
    assert done.returncode == int("BROKEN" in found.values()), done.stdout + done.stderr
    return found


def test_the_contracts_hold_and_each_can_be_broken(house: Path) -> None:
    assert lint(house) == dict.fromkeys(BREAKING, "KEPT")
    files = {house / "exact_vae" / name: line for lines in BREAKING.values() for name, line in lines}
    before = {file: file.read_text(encoding="utf-8") for file in files}
    for contract, lines in BREAKING.items():
        for name, line in lines:
            file = house / "exact_vae" / name
            file.write_text(f"{before[file]}\n{line}\n", encoding="utf-8")
            assert lint(house)[contract] == "BROKEN", line
            file.write_text(before[file], encoding="utf-8")


def test_a_room_that_no_contract_places_is_told(house: Path) -> None:
    extra = house / "exact_vae" / "vae_model" / "extra.py"
    extra.touch()
    assert lint(house)["The rooms of vae_model"] == "BROKEN"
    extra.unlink()
