"""Configurations: bundled ones, old shapes, and every mistake in one line before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from exact_vae.__main__ import main

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae.vae_model.training.config import ConfigError, TrainConfig
from exact_vae.vae_model.training.recipe import bundled_configs, config_from, read_config


@pytest.mark.parametrize("name", ["kl_f8_small", "kl_f16", "finetune_decoder", "distill_tiny"])
def test_bundled_configurations_are_read(name: str) -> None:
    assert name in bundled_configs()
    config = read_config(name, ["data.train=a", "trainer.seed=7"])
    assert (config.data.train, config.trainer.seed) == (("a",), 7)


def test_old_files_have_embed_dim_in_either_place() -> None:
    inside = config_from({"model": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {"embed_dim": 4}}})
    beside = config_from({"model": {"target": "AutoEncoderKL", "embed_dim": 4, "params": {}}})
    assert inside.model.params["embed_dim"] == beside.model.params["embed_dim"] == 4


def test_defaults_are_those_of_the_dataclasses() -> None:
    assert config_from({}) == TrainConfig()


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"trainer": {"batchs": 3}}, "trainer.batchs: expected one of batches, epochs"),
        ({"trainer": {"batches": "many"}}, "trainer.batches: expected a whole number or null, got 'many'"),
        ({"trainer": {"batches": True}}, "trainer.batches: expected a whole number or null, got True"),
        ({"optimizer": 3}, "optimizer: expected a section, got 3"),
        ({"data": {"stages": [[0.5, 64, 4]]}}, "data.stages: expected rising shares from 0"),
        ({"trainer": {"batches": 1, "epochs": 1}}, "trainer: expected one of batches and epochs, got both"),
        ({"output": {"weights": "a.ckpt"}}, "output.weights: expected a name ending in .safetensors"),
        ({"optimizer": {"schedule": "step"}}, "optimizer.schedule: expected one of constant, linear, cosine"),
    ],
)
def test_mistakes_are_named(tree: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from(tree)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["data.train=/nowhere"], "data.train: expected a folder, a picture or a .txt list, got /nowhere"),
        ([], "data.train: expected folders or lists with pictures, got nothing"),
        (["model.target=os.system"], "model.target: expected one of AutoEncoderKL"),
        (["model.params.monitor=val/beauty"], "monitor: expected one of val/psnr"),
        (["model.params.ckpt_path=nowhere.safetensors"], "nowhere.safetensors"),
        (["model.params.ckpt_path=bundled"], "model.ckpt_path: expected weights that fit ddconfig, got bundled with"),
        (["data.crop=61"], "data.crop: expected multiples of 2 pixels, got 61"),
        (["nonsense"], "config: expected key=value, got 'nonsense'"),
    ],
)
def test_the_command_says_what_is_wrong(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from exact_vae.vae_model.files.images import write_image
    from torch import rand

    photos = tmp_path / "photos"
    photos.mkdir()
    write_image(rand(40, 40, 3), photos / "a.png")
    small = ["model.params.ddconfig.ch=16", "model.params.ddconfig.ch_mult=[1,1]", "data.crop=16", "data.stages=[]"]
    folders = [f"data.train={photos}", f"data.val={photos}", f"output.folder={tmp_path / 'run'}"]
    given = [word for word in folders if words or not word.startswith("data.train")]
    assert main(["train", "kl_f8_small", *small, *given, *words, "--quiet"]) == 2
    printed = capsys.readouterr().err
    assert text in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "run" / "last.ckpt").exists()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_is_for_terminals(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    asked: list[bool] = []

    def prepare(config: TrainConfig, *, resume: bool, progress: bool, inputs: Any) -> Any:
        asked.append(progress)
        raise ConfigError("far enough")

    monkeypatch.setattr("exact_vae.vae_model.training.fit.prepare", prepare)
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    assert main(["train", "kl_f8_small", f"data.train={photos}", f"output.folder={tmp_path / 'run'}"]) == 2
    assert asked == [is_terminal]
