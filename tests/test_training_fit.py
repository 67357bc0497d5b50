"""Short trainings: they learn, they go on where they stopped, and their weights open everywhere."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae import load_vae
from exact_vae.vae_model.files.images import write_image
from exact_vae.vae_model.training.checkpoint import AtomicCheckpointIO
from exact_vae.vae_model.training.command import train
from exact_vae.vae_model.training.config import ConfigError
from exact_vae.vae_model.training.fit import prepare, run
from exact_vae.vae_model.training.recipe import read_config
from safetensors.torch import load_file

distributions = metadata.packages_distributions()
# Lightning 2.6 itself uses what torch has deprecated.
deprecated = pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning")
pytestmark = [pytest.mark.usefixtures("one_thread"), deprecated]

TINY = {
    "target": "AutoEncoderKL",
    "params": {
        "embed_dim": 4,
        "ema_decay": 0.9,
        "start": "skip",
        "ddconfig": {
            "ch": 8,
            "ch_mult": [1, 2],
            "num_res_blocks": 1,
            "in_channels": 3,
            "out_ch": 3,
            "z_channels": 4,
            "num_groups": 4,
        },
        "lossconfig": {"params": {"terms": {"l1": 1.0}, "kl_weight": 1e-5}},
    },
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of smooth colours, one of them grey, and one file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    generator = torch.Generator().manual_seed(0)
    for number in range(6):
        coarse = torch.rand(1, 3, 5, 6, generator=generator)
        picture = torch.nn.functional.interpolate(coarse, size=(64, 72), mode="bilinear")[0].movedim(0, 2)
        if number == 5:
            picture = picture.mean(dim=2, keepdim=True).expand(-1, -1, 3)
        write_image(picture, folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


def write_config(folder: Path, photos: Path, model: dict[str, Any] = TINY, **trainer: Any) -> str:
    """A configuration as YAML, which JSON is."""
    content = {
        "model": model,
        "optimizer": {"lr": 3e-3, "schedule": "cosine"},
        "data": {"train": [str(photos)], "val": [str(photos)], "batch_size": 4, "crop": 16, "val_crop": 32},
        "trainer": {"batches": 12, "check_every": 4, "precision": "32-true", "accelerator": "cpu", **trainer},
        "output": {"folder": str(folder / "run"), "dtype": "float32", "grids": 2},
    }
    path = folder / "config.yaml"
    path.write_text(json.dumps(content))
    return str(path)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "run" / "vae.safetensors")


def test_it_learns_and_its_weights_open_as_a_vae(tmp_path: Path, photos: Path) -> None:
    train(write_config(tmp_path, photos, batches=150, check_every=50), quiet=True)
    curve = json.loads((tmp_path / "run" / "training.json").read_text())["curve"]
    assert [row["batch"] for row in curve] == [50, 100, 150]
    assert curve[-1]["psnr"] > curve[0]["psnr"] + 1
    assert curve[-1]["latent_std"] > 0.3  # not collapsed
    assert sorted(path.suffix for path in (tmp_path / "run" / "images").iterdir())[0] == ".png"
    vae = load_vae(tmp_path / "run" / "vae.safetensors", device="cpu", dtype="float32")
    image = vae.decode(vae.encode(torch.full((1, 32, 32, 3), 0.5)))
    assert image.shape == (1, 32, 32, 3)


def test_the_seeds_default_loss_collapses(tmp_path: Path, photos: Path) -> None:
    model = {**TINY, "params": {**TINY["params"], "lossconfig": {"target": "default_loss"}}}
    train(write_config(tmp_path, photos, model, batches=150, check_every=150), quiet=True)
    (row,) = json.loads((tmp_path / "run" / "training.json").read_text())["curve"]
    assert row["latent_std"] < 0.1


def interrupt_at(batch: int) -> Any:
    """Ctrl-C behind a batch, as a callback."""
    from lightning import Callback

    class Interrupt(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            if pl_module.batches_done == batch:
                signal.raise_signal(signal.SIGINT)

    return Interrupt()


def test_interrupted_and_resumed_is_the_same_to_the_last_bit(tmp_path: Path, photos: Path) -> None:
    """Interrupted by the user when the discriminator has been trained for two batches, accumulating two batches."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    loss = {"disc_weight": 0.1, "disc_start": 3, "disc_width": 4, "disc_layers": 1}
    model = {**TINY, "params": {**TINY["params"], "lossconfig": {"params": loss}}}
    train(write_config(whole, photos, model, accumulate=2), quiet=True)
    config = write_config(parts, photos, model, accumulate=2)
    prepared = prepare(read_config(config), progress=False)
    prepared.trainer.callbacks.append(interrupt_at(5))
    run(prepared)
    assert 5 <= prepared.module.batches_done <= 6, "the interruption did not stop it"
    train(config, resume=True, quiet=True)
    expected, found = weights(whole), weights(parts)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"batches_done": 1}, target)
    before = target.read_bytes()

    def full(content: Any, path: Any) -> None:
        Path(path).write_bytes(b"half a checkp")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"expected to write .*last\.ckpt, got No space left on device: make room"):
        AtomicCheckpointIO().save_checkpoint({"batches_done": 2}, target)
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_training_is_not_overwritten(tmp_path: Path, photos: Path) -> None:
    config = write_config(tmp_path, photos, batches=2, check_every=2)
    with pytest.raises(ConfigError, match=r"--resume: expected .*last\.ckpt, found none"):
        train(config, resume=True, quiet=True)
    train(config, quiet=True)
    with pytest.raises(ConfigError, match=r"expected one without a training, got .*: go on with --resume"):
        train(config, quiet=True)


def test_a_tiny_decoder_learns_from_a_teacher(tmp_path: Path, photos: Path) -> None:
    train(write_config(tmp_path, photos, batches=2, check_every=2), quiet=True)
    teacher = tmp_path / "run" / "vae.safetensors"
    student = tmp_path / "student"
    student.mkdir()
    loss = {"params": {"terms": {"l1": 1.0}, "kl_weight": 0.0}}
    params = {"teacher": str(teacher), "width": 8, "blocks": 1, "lossconfig": loss}
    model = {"target": "TinyDistillation", "params": params}
    train(write_config(student, photos, model, batches=60, check_every=30), quiet=True)
    curve = json.loads((student / "run" / "training.json").read_text())["curve"]
    assert curve[-1]["psnr"] > curve[0]["psnr"]
    assert load_vae(student / "run" / "vae.safetensors", device="cpu").latent_channels == 4


@pytest.mark.slow
@pytest.mark.skipif(not distributions.get("exact_vae"), reason="exact-vae is not installed: pip install -e .")
def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path, photos: Path) -> None:
    """The same crops, the same noise: only the order of additions differs."""
    curves: list[list[dict[str, float]]] = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        config = write_config(folder, photos, batches=8, check_every=4, devices=devices)
        words = [f"data.batch_size={4 // devices}", f"trainer.strategy={'auto' if devices == 1 else 'ddp'}", "--quiet"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
        command = [sys.executable, "-m", "exact_vae", "train", config, *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        curves.append(json.loads((folder / "run" / "training.json").read_text())["curve"])
    assert len(curves[0]) == 2
    for one, two in zip(*curves, strict=True):
        for key in ("psnr", "rec_loss", "kl_loss", "total_loss"):
            assert two[key] == pytest.approx(one[key], rel=1e-4, abs=1e-4), key
    first, second = weights(tmp_path / "1"), weights(tmp_path / "2")
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=0, atol=1e-4)
