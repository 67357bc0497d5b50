"""A narrow Wan VAE in a file, loaded, and on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from exact_vae import load_vae, save
from exact_vae.__main__ import main
from exact_vae.tests.families.table import random_model
from exact_vae.tests.runs.test_clip_inputs import ROW


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wan") / "wan.safetensors"
    save(random_model(ROW), path)
    return path


@pytest.fixture(scope="module")
def vae(file: Path) -> Any:
    return load_vae(file, device="cpu", dtype="float32")


@pytest.fixture
def run(file: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def call(command: str, *arguments: object, vae: object = file) -> tuple[int, str, str]:
        code = main([command, *map(str, arguments), "--vae", str(vae), "--device", "cpu", "--dtype", "float32"])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call
