"""A model, photographs and configurations small enough to train in a test."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from exact_vae.vae_model.files.images import write_image
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
TINY: dict[str, Any] = {
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


def with_params(**params: Any) -> dict[str, Any]:
    """`TINY` with other arguments of the model."""
    return {**TINY, "params": {**TINY["params"], **params}}


def write_photos(folder: Path) -> None:
    """Six pictures of smooth colours, one of them grey, and one file that is none."""
    generator = torch.Generator().manual_seed(0)
    for number in range(6):
        coarse = torch.rand(1, 3, 5, 6, generator=generator)
        picture = torch.nn.functional.interpolate(coarse, size=(64, 72), mode="bilinear")[0].movedim(0, 2)
        if number == 5:
            picture = picture.mean(dim=2, keepdim=True).expand(-1, -1, 3)
        write_image(picture, folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")


def write_config(folder: Path, photos: Path, model: dict[str, Any] = TINY, **trainer: Any) -> str:
    """A configuration as YAML, which JSON is."""
    content = {
        "model": model,
        "optimizer": {"lr": 3e-3, "schedule": "cosine"},
        "data": {"train": [str(photos)], "val": [str(photos)], "batch_size": 4, "crop": 16, "val_crop": 32},
        "trainer": {"batches": 12, "check_every": 4, "precision": "32-true", "accelerator": "cpu", **trainer},
        "output": {"folder": str(folder / "run"), "dtype": "float32", "grids": 2},
    }
    folder.mkdir(exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(json.dumps(content))
    return str(path)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What a training in `folder` wrote."""
    return load_file(folder / "run" / "vae.safetensors")


def curve(folder: Path) -> list[dict[str, float]]:
    """The rows of its checks."""
    return json.loads((folder / "run" / "training.json").read_text())["curve"]


def interrupt_at(batch: int, number: signal.Signals) -> Any:
    """Ctrl-C behind a batch, or what a cluster sends, as a callback."""
    from lightning import Callback

    class Interrupt(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            if pl_module.batches_done == batch:
                signal.raise_signal(number)

    return Interrupt()


def train_in_processes(config: str, *words: str, code: int = 0) -> None:
    """`exact-vae train` in a process of its own, which starts the others; one thread each. `code` is its exit code.

    On a busy machine the connection between two processes was lost once in some sixty runs, and the training ended with
    gloo's own words. Why is not known. It says nothing about what is tested here: such a run is printed and repeated.
    """
    done = _run_training(config, *words)
    if done.returncode != code and re.search(r"gloo.*Connection (reset|closed) by peer", done.stderr):
        print("the processes of a training lost each other:", done.stderr, sep="\n")
        if "--resume" not in words:
            shutil.rmtree(Path(config).parent / "run")
        done = _run_training(config, *words)
    assert done.returncode == code, done.stderr[-4000:]


def _run_training(config: str, *words: str) -> subprocess.CompletedProcess[str]:
    links = Path(config).parent / "links"
    if not links.exists():
        links.mkdir()
        (links / "exact_vae").symlink_to(ROOT, target_is_directory=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(links)}
    environment["PYTHONFAULTHANDLER"] = "1"  # a process that crashes says where
    command = [sys.executable, "-m", "exact_vae", "train", config, *words, "--quiet"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
