"""`exact-vae train` of every bundled configuration, killed at a random batch and resumed: as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae.__main__ import main
from exact_vae.vae_model.training.recipe import bundled_configs, read_config
from safetensors.torch import load_file

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae import load_vae
from exact_vae.tests.training.case import ROOT, curve
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny

# Lightning 2.6 itself uses what torch has deprecated.
deprecated = pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning")
pytestmark = [pytest.mark.usefixtures("one_thread"), deprecated]

SMALL = ["data.crop=32", "data.val_crop=32", "data.batch_size=2", "data.val_limit=2", "data.workers=0"]
SMALL += ["trainer.accelerator=cpu", "trainer.batches=null", "trainer.epochs=3", "trainer.check_every=4"]
SMALL += ["optimizer.warm_up=2", "output.dtype=float32", "output.grids=1"]
"""Six photographs, two at a time, three epochs: nine batches, and checks after 3, 4, 6, 8 and 9 of them."""
CHANGES = {
    "kl_f16": ["model.params.ddconfig.ch=32", "model.params.lossconfig.params.disc_start=2"],
    "kl_f8_small": ["data.stages=[[0,32,2]]", "model.params.monitor=val/rec_loss"],
    "distill_tiny": ["model.params.width=16", "model.params.train=[encoder,decoder]", "trainer.accumulate=2"],
}
"""Smaller, and in the ways that a resumed training could miss: a discriminator, accumulated batches, both halves."""
CHECKS = {"distill_tiny": [4, 6, 8, 10]}  # at complete steps
BATCHES = 9

KILLED = """
import os, signal, sys
import torch
from exact_vae.__main__ import main
from exact_vae.vae_model.training import fit

torch.set_num_threads(1)
prepare = fit.prepare
last, where = int(sys.argv[1]), sys.argv[2]

def prepare_to_be_killed(*given, **options):
    from lightning import Callback

    class Kill(Callback):
        pass

    def kill(self, trainer, module, *rest):
        if module.batches_done == last:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(Kill, where, kill)
    prepared = prepare(*given, **options)
    prepared.trainer.callbacks.insert(0 if where == "on_validation_end" else len(prepared.trainer.callbacks), Kill())
    return prepared

fit.prepare = prepare_to_be_killed
sys.exit(main(sys.argv[3:]))
"""
"""The command, killed where nothing can be saved any more: behind a batch, or in the middle of a check."""


def train_killed(folder: Path, words: list[str], batch: int, where: str) -> None:
    """Train in a process of its own until it is killed."""
    (folder / "exact_vae").symlink_to(ROOT, target_is_directory=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", KILLED, str(batch), where, "train", *words, "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-4000:]


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is killed there as here")
@pytest.mark.parametrize("name", bundled_configs())
def test_killed_and_resumed_ends_in_the_same_bits(name: str, tmp_path: Path, photos: Path) -> None:
    batch, where = random.randint(3, BATCHES - 1), random.choice(["on_train_batch_end", "on_validation_end"])
    if where == "on_validation_end":
        batch = random.choice(CHECKS.get(name, [4, 6, 8, 9])[1 if name in CHECKS else 0 :])
    print(f"killed at {where} of batch {batch}")
    words = [name, f"data.train={photos}", f"data.val={photos}", *SMALL, *CHANGES.get(name, [])]
    whole, parts = tmp_path / "whole" / "run", tmp_path / "parts" / "run"
    assert main(["train", *words, f"output.folder={whole}", "--quiet"]) == 0
    train_killed(tmp_path, [*words, f"output.folder={parts}"], batch, where)
    (parts / ".tmp-0123456789ab.safetensors").write_bytes(b"of a file that was being written")
    again = [*words, f"output.folder={parts}", "--quiet"]
    assert main(["train", *again, *(["--resume"] if (parts / "last.ckpt").exists() else [])]) == 0

    weights = read_config(name).output.weights
    for file in (weights, "best.safetensors"):
        expected, found = load_file(whole / file), load_file(parts / file)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), file
    rows = [[{k: v for k, v in row.items() if k != "minutes"} for row in curve(path.parent)] for path in (whole, parts)]
    assert rows[0] == rows[1]
    assert [row["batch"] for row in rows[0]] == CHECKS.get(name, [3, 4, 6, 8, 9])
    assert json.loads((whole / "best.json").read_text()) == json.loads((parts / "best.json").read_text())
    assert {path.name: path.read_bytes() for path in (whole / "images").iterdir()} == {
        path.name: path.read_bytes() for path in (parts / "images").iterdir()
    }
    assert sorted(path.name for path in parts.iterdir()) == sorted(path.name for path in whole.iterdir())
    opens_in_diffusers(parts / weights, tmp_path / "diffusers")


def opens_in_diffusers(weights: Path, folder: Path) -> None:
    """The file in diffusers' layout, read by diffusers itself, gives our images."""
    diffusers: Any = pytest.importorskip("diffusers", reason="diffusers is absent")
    assert main(["convert", str(weights), "-o", str(folder), "--layout", "diffusers", "--quiet"]) == 0
    model = load_vae(weights, device="cpu", dtype="float32").first_stage_model
    kind = diffusers.AutoencoderTiny if isinstance(model, AutoencoderTiny) else diffusers.AutoencoderKL
    theirs = kind.from_pretrained(folder).eval()
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        z = theirs.encode(x)
        z = z.latents if isinstance(model, AutoencoderTiny) else z.latent_dist.mode()
        first, second = (plain(found) for found in (model.encode(x), model.decode(z)))
        torch.testing.assert_close(first, z, rtol=0, atol=1e-4)  # float32 in another order
        torch.testing.assert_close(second, theirs.decode(z).sample, rtol=0, atol=1e-4)


def plain(found: Any) -> torch.Tensor:
    """The tensor of an output that may hold it."""
    return found if isinstance(found, torch.Tensor) else found[0]
