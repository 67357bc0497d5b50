"""docs/training.md: every key once, with the default that the code has."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from exact_vae.vae_model.training.autoencoder_loss import AutoencoderLoss
from exact_vae.vae_model.training.config import TrainConfig, encoder_arguments
from exact_vae.vae_model.training.recipe import _loader  # pyright: ignore[reportPrivateUsage]

yaml: Any = pytest.importorskip("yaml", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
ROOT = Path(__file__).resolve().parents[2]
REQUIRED = "must be given"


def documented(title: str) -> dict[str, Any]:
    """Key -> default of the table below a title; every key once, every row with four cells and a unit or a meaning."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    section = re.split(r"^#+ ", text.split(f" {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in section.splitlines() if "`" in line[:4]]
    assert all(len(row) == 4 for row in rows)
    keys = [row[0].strip("`") for row in rows]
    assert len(keys) == len(set(keys))
    values = [yaml.load(row[1].strip("`"), _loader()) if row[1] else REQUIRED for row in rows]
    return dict(zip(keys, values, strict=True))


def plain(value: Any) -> Any:
    """As YAML has it."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


@pytest.mark.parametrize("section", get_type_hints(TrainConfig))
def test_every_key_of_a_section_is_there_with_its_default(section: str) -> None:
    kind = get_type_hints(TrainConfig)[section]
    expected = {
        f"{section}.{entry.name}": plain(entry.default if entry.default_factory is MISSING else entry.default_factory())
        for entry in fields(kind)
    }
    assert documented(section) == expected


def arguments(make: Callable[..., Any]) -> dict[str, Any]:
    """Name -> default of a function."""
    parameters = inspect.signature(make).parameters.values()
    return {p.name: REQUIRED if p.default is p.empty else plain(p.default) for p in parameters}


def test_every_argument_of_an_architecture_and_of_the_loss_is_there() -> None:
    assert documented("model.params.ddconfig") == arguments(encoder_arguments)
    assert documented("model.params.lossconfig.params of AutoencoderLoss") == arguments(AutoencoderLoss)


@pytest.mark.parametrize("name", ["AutoEncoderKL", "TinyDistillation"])
def test_every_argument_of_a_model_is_there(name: str) -> None:
    pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
    from exact_vae.vae_model.training.fit import MODELS

    assert documented(f"model.params of {name}") == arguments(MODELS[name])


def test_readme_names_the_most_needed_keys_and_links_the_table() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(docs/training.md)" in readme
    for section in ("data", "trainer", "optimizer", "output"):
        named = set(re.findall(rf"`{section}\.(\w+)", readme))
        assert named, section
        assert {f"{section}.{key}" for key in named} <= documented(section).keys()


def test_what_must_stay_on_resume_is_there() -> None:
    """Each argument that `--resume` refuses to have changed, and the sections of which changes are told."""
    resume: Any = pytest.importorskip("exact_vae.vae_model.training.resume", reason="lightning is absent")
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    section = text.split("## Going on\n", 1)[1].partition("\n## ")[0]
    may, _, must = section.partition("What must stay:")
    assert all(f"`{name}`" in must for name in resume._FIXED)
    assert all(f"`{name.rpartition('.')[2]}`" in must for name in resume._FREE)
    assert all(f"`{name}`" in may for name in resume._TOLD)
