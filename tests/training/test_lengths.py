"""The length of a training: one of batches and epochs, whatever they are called and wherever they stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae.__main__ import main
from exact_vae.vae_model.training.config import ConfigError
from exact_vae.vae_model.training.recipe import bundled_configs, config_from, read_config

pytestmark = pytest.mark.usefixtures("one_thread")
BOTH = "config: trainer: expected one of batches and epochs, got both"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["trainer.batches=2", "trainer.epochs=3"], f"{BOTH} (trainer.batches 2, trainer.epochs 3): remove one"),
        (["trainer.epochs=3", "trainer.batches=2"], f"{BOTH} (trainer.epochs 3, trainer.batches 2): remove one"),
        (
            ["trainer.batches=2", "trainer.max_epochs=2"],
            f"{BOTH} (trainer.batches 2, trainer.max_epochs 2): remove one",
        ),
        (["trainer.max_steps=2", "trainer.max_epochs=2"], f"{BOTH} (trainer.max_steps 2, trainer.max_epochs 2)"),
        (["trainer.epochs=2", "lightning.trainer.max_steps=2"], f"{BOTH} (trainer.epochs 2, lightning.trainer.max_"),
        (
            ["trainer.batches=2", "trainer.max_steps=3"],
            "config: trainer: expected one number of batches, got two (trainer.batches 2, trainer.max_steps 3): remove",
        ),
    ],
)
@pytest.mark.parametrize("name", ["kl_f8_small", "file"])
def test_two_lengths_on_the_command_line_are_refused(
    name: str, words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("trainer: {accumulate: 1}\n")
    assert main(["train", str(path) if name == "file" else name, *words]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"exact-vae: {text}")
    assert printed.count("\n") == 1


FILES: list[dict[str, Any]] = [
    {"trainer": {"batches": 1, "epochs": 2}},
    {"trainer": {"batches": 1, "max_epochs": 2}},
    {"trainer": {"max_steps": 1, "epochs": 2}},
    {"trainer": {"max_steps": 1, "max_epochs": 2}},
    {"lightning": {"trainer": {"max_steps": 1, "max_epochs": 2}}},
]


@pytest.mark.parametrize("tree", FILES)
def test_two_lengths_in_a_file_are_refused_and_one_on_the_command_line_replaces_them(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(tree))
    for read in (lambda: config_from(tree), lambda: read_config(str(path))):
        with pytest.raises(ConfigError) as caught:
            read()
        assert str(caught.value).startswith(BOTH)
        assert "\n" not in str(caught.value)
    for word in ("trainer.epochs=7", "trainer.max_epochs=7", "lightning.trainer.max_epochs=7"):
        trainer = read_config(str(path), [word]).trainer
        assert (trainer.batches, trainer.epochs) == (None, 7)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "as it is"),
        (["trainer.epochs=3"], (None, 3)),
        (["trainer.max_epochs=3"], (None, 3)),
        (["lightning.trainer.max_epochs=3"], (None, 3)),
        (["trainer.batches=5"], (5, None)),
        (["lightning.trainer.max_steps=5"], (5, None)),
        (["trainer.batches=5", "trainer.batches=6"], (6, None)),  # said again
        (["trainer.batches=5", "trainer.max_steps=5"], (5, None)),
        (["trainer.batches=null", "trainer.epochs=3"], (None, 3)),
        (["trainer.epochs=3", "trainer.batches=null"], (None, 3)),
        (["trainer.max_epochs=3", "trainer.max_steps=-1"], (None, 3)),
        (["trainer.batches=5", "trainer.max_epochs=-1"], (5, None)),
    ],
)
def test_one_length_replaces_that_of_a_bundled_configuration(words: list[str], expected: Any) -> None:
    for name in bundled_configs():
        usual = read_config(name).trainer
        trainer = read_config(name, words).trainer
        assert (trainer.batches, trainer.epochs) == ((usual.batches, usual.epochs) if not words else expected)


@pytest.mark.parametrize(
    ("tree", "expected", "unused"),
    [
        ({"trainer": {"batches": None, "max_steps": 4}}, (4, None), []),
        ({"trainer": {"batches": 4, "max_steps": -1}}, (4, None), []),
        ({"trainer": {"batches": 4, "max_steps": 4}}, (4, None), []),
        ({"trainer": {"epochs": 2}, "lightning": {"trainer": {"max_steps": 9}}}, (None, 2), ["max_steps"]),
        ({"trainer": {"epochs": 2}, "lightning": {"trainer": {"max_epochs": 9}}}, (None, 2), ["max_epochs"]),
        ({"trainer": {"epochs": None}, "lightning": {"trainer": {"max_steps": 9}}}, (9, None), []),
    ],
)
def test_of_two_sections_ours_counts_and_the_other_is_told(
    tree: dict[str, Any], expected: tuple[int | None, int | None], unused: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = config_from(tree).trainer
    assert (trainer.batches, trainer.epochs) == expected
    told = [f"config: not used here: lightning.trainer.{name}" for name in unused]
    assert [record.getMessage() for record in caplog.records] == told
