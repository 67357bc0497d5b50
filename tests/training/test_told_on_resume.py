"""What goes on otherwise than before is told: other pictures, another rate, a word that is given twice."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import pytest
from exact_vae.vae_model.training.model_module import plain
from exact_vae.vae_model.training.recipe import read_config
from exact_vae.vae_model.training.resume import _changed  # pyright: ignore[reportPrivateUsage]


def test_other_pictures_and_another_rate_are_told() -> None:
    before = read_config("kl_f8_small", ["data.train=a", "trainer.batches=5"])
    after = read_config("kl_f8_small", ["data.train=b", "trainer.batches=9", "optimizer.lr=0.5", "trainer.seed=3"])
    assert _changed(plain(asdict(before)), before) == []
    rate = before.optimizer.lr
    assert _changed(plain(asdict(before)), after) == [
        f"goes on with data.train ['b'] instead of ['a']; optimizer.lr 0.5 instead of {rate}; "
        "trainer.seed 3 instead of 0"
    ]


def test_of_a_word_given_twice_the_last_holds_and_is_told(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("data: {train: [x]}\n")
    with caplog.at_level(logging.INFO, logger="exact_vae.vae_model.notes"):
        config = read_config(str(file), ["trainer.batches=2", "optimizer.lr=0.1", "trainer.batches=3"])
        assert config.trainer.batches == 3
        assert [record.getMessage() for record in caplog.records] == [
            "config: trainer.batches is on the command line more than once, 2 and 3: the last one holds"
        ]
        caplog.clear()
        read_config(str(file), ["trainer.batches=2", "trainer.batches=2"])
        assert not caplog.records
