"""Short trainings: they learn, they go on where they stopped, and their weights open everywhere."""

from __future__ import annotations

import errno
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae import load_vae
from exact_vae.tests.training.case import curve, interrupt_at, weights, with_params, write_config
from exact_vae.vae_model.files.images import read_image
from exact_vae.vae_model.training.checkpoint import AtomicCheckpointIO
from exact_vae.vae_model.training.command import train
from exact_vae.vae_model.training.config import ConfigError
from exact_vae.vae_model.training.fit import prepare, run
from exact_vae.vae_model.training.recipe import read_config

# Lightning 2.6 itself uses what torch has deprecated.
deprecated = pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning")
pytestmark = [pytest.mark.usefixtures("one_thread"), deprecated]


def test_it_learns_and_its_weights_open_as_a_vae(tmp_path: Path, photos: Path) -> None:
    train(write_config(tmp_path, photos, batches=90, check_every=30), quiet=True)
    rows = curve(tmp_path)
    assert [row["batch"] for row in rows] == [30, 60, 90]
    assert rows[-1]["psnr"] > rows[0]["psnr"] + 1
    assert rows[-1]["latent_std"] > 0.3  # not collapsed
    pictures = sorted(path.name for path in (tmp_path / "run" / "images").iterdir())
    assert pictures == [f"{batch:08d}{kind}.png" for batch in (30, 60, 90) for kind in ("", "_samples")]
    vae = load_vae(tmp_path / "run" / "vae.safetensors", device="cpu", dtype="float32")
    image = vae.decode(vae.encode(torch.full((1, 32, 32, 3), 0.5)))
    assert image.shape == (1, 32, 32, 3)


def test_samples_of_the_prior_are_among_its_pictures(tmp_path: Path, photos: Path) -> None:
    """Of the averaged weights, as those that are written; the same noise at every check."""
    train(write_config(tmp_path, photos, batches=4, check_every=2), quiet=True)
    vae = load_vae(tmp_path / "run" / "vae.safetensors", device="cpu", dtype="float32")
    generator = torch.Generator().manual_seed(0)
    expected = torch.cat([vae.decode(torch.randn(1, 4, 64, 64, generator=generator)) for _ in range(2)], dim=2)
    found, _ = read_image(tmp_path / "run" / "images" / "00000004_samples.png")
    torch.testing.assert_close(found, expected, rtol=0, atol=0.5 / 255 + 1e-4)  # eight bits


def test_the_seeds_default_loss_collapses(tmp_path: Path, photos: Path) -> None:
    model = with_params(lossconfig={"target": "default_loss"})
    train(write_config(tmp_path, photos, model, batches=120, check_every=120), quiet=True)
    (row,) = curve(tmp_path)
    assert row["latent_std"] < 0.1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_is_the_same_to_the_last_bit(
    number: signal.Signals, tmp_path: Path, photos: Path
) -> None:
    """Interrupted by the user when the discriminator has been trained for two batches, accumulating two batches."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    loss = {"disc_weight": 0.1, "disc_start": 3, "disc_width": 4, "disc_layers": 1}
    model = with_params(lossconfig={"params": loss})
    train(write_config(whole, photos, model, accumulate=2), quiet=True)
    config = write_config(parts, photos, model, accumulate=2)
    prepared = prepare(read_config(config), progress=False)
    prepared.trainer.callbacks.append(interrupt_at(5, number))
    run(prepared)
    assert prepared.module.batches_done == 6, "it did not stop at the next complete step"
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
    loss = {"params": {"terms": {"l1": 1.0}, "kl_weight": 0.0}}
    params = {"teacher": str(teacher), "width": 8, "blocks": 1, "lossconfig": loss}
    model = {"target": "TinyDistillation", "params": params}
    train(write_config(student, photos, model, batches=60, check_every=30), quiet=True)
    rows = curve(student)
    assert rows[-1]["psnr"] > rows[0]["psnr"]
    assert load_vae(student / "run" / "vae.safetensors", device="cpu").latent_channels == 4
