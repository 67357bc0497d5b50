"""When a training is judged, how long its epochs are, and which weights are its best."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exact_vae.vae_model.families.ldm.autoencoder import build_kl
from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig
from exact_vae.vae_model.training.crops import Timetable, batches_of
from safetensors.torch import load_file

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae import load_vae
from exact_vae.tests.training.case import curve, with_params, write_config
from exact_vae.vae_model.training import checkpoint
from exact_vae.vae_model.training.checkpoint import Checkpoints, is_due
from exact_vae.vae_model.training.command import train

# Lightning 2.6 itself uses what torch has deprecated.
deprecated = pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning")
pytestmark = [pytest.mark.usefixtures("one_thread"), deprecated]


def checks(total: int, every: int, accumulate: int = 1, epochs: Any = None) -> list[int]:
    """All batches behind which there is one."""
    return [done for done in range(1, total + 1) if is_due(done, total, every, accumulate, epochs)]


def test_checks_are_at_every_so_many_batches_at_epochs_and_at_the_end() -> None:
    assert checks(10, 4) == [4, 8, 10]
    assert checks(10, 500) == [10]
    assert checks(12, 5, accumulate=2) == [6, 10, 12]  # at the first complete step
    assert checks(12, 5, accumulate=4) == [8, 12]
    of_five = partial(Timetable([(0, 16, 2)], 8).epochs, pictures=5)  # 2 at a time: through after 2.5, 5, 7.5 batches
    assert checks(8, 500, epochs=of_five) == [3, 5, 8]
    assert checks(8, 4, epochs=of_five) == [3, 4, 5, 8]
    assert checks(8, 500, 2, of_five) == [4, 6, 8]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("stages", [[(0.0, 16, 3)], [(0.0, 64, 16), (0.7, 128, 4)], [(0, 8, 1), (0.5, 8, 8)]])
def test_an_epoch_is_every_picture_once_whatever_the_stages(stages: Any, processes: int) -> None:
    for pictures in (1, 7, 100):
        for epochs in (1, 3):
            batches = batches_of(epochs, pictures, stages, processes)
            seen = Timetable(stages, batches, processes).batch(batches)[0].start
            largest = max(size for _, _, size in stages) * processes
            assert epochs * pictures <= seen <= epochs * pictures + 2 * largest
    assert batches_of(10, 12, [(0.0, 16, 4)]) == 30  # nothing is added where it divides


def test_a_training_of_epochs_is_judged_at_the_end_of_each(tmp_path: Path, photos: Path) -> None:
    """Six photographs, four at a time: three epochs are five batches, and end after batches 2, 3 and 5."""
    model = with_params(monitor="val/psnr")
    train(write_config(tmp_path, photos, model, batches=None, epochs=3, check_every=500), quiet=True)
    folder = tmp_path / "run"
    assert [row["batch"] for row in curve(tmp_path)] == [2, 3, 5]
    assert {path.stem[:8] for path in (folder / "images").iterdir()} == {"00000002", "00000003", "00000005"}
    best = json.loads((folder / "best.json").read_text())
    assert best["monitor"] == "val/psnr"
    assert best["value"] == pytest.approx(max(row["psnr"] for row in curve(tmp_path)), abs=1e-3)
    assert load_vae(folder / "best.safetensors", device="cpu").latent_channels == 4


def test_a_training_without_a_check_on_the_way_has_one_at_its_end(tmp_path: Path, photos: Path) -> None:
    train(write_config(tmp_path, photos, with_params(monitor="val/psnr"), batches=3, check_every=500), quiet=True)
    assert [row["batch"] for row in curve(tmp_path)] == [3]
    assert (tmp_path / "run" / "best.safetensors").exists()


class Recorder(Checkpoints):
    """Writes no weights, and notes of which score they would have been."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "weights.safetensors", "float32", every=1)
        self.written: list[float] = []

    def export(self, trainer: Any, pl_module: Any, name: str, header: Any = None) -> None:
        self.written.append(float(trainer.callback_metrics[pl_module.monitor]))

    def check(self, score: float, monitor: str = "val/psnr") -> bool:
        """What is called behind a check; whether its weights are the best."""
        before = len(self.written)
        trainer: Any = SimpleNamespace(callback_metrics={monitor: torch.tensor(score)}, is_global_zero=True)
        self.keep_best(trainer, SimpleNamespace(monitor=monitor))
        return len(self.written) > before


def test_worse_weights_never_replace_the_best_after_a_crash(tmp_path: Path) -> None:
    """Killed behind the check that found the best weights, and before the checkpoint that knows of it."""
    first = Recorder(tmp_path)
    first.check(28.0)
    stored = first.state_dict()
    first.check(30.0)
    second = Recorder(tmp_path)
    second.load_state_dict(stored)
    for score in (25.0, float("nan"), float("inf"), 29.0):
        second.check(score)
    assert (first.written, second.written) == ([28.0, 30.0], [])
    second.check(30.0)  # the same check again: its weights may not have been written
    assert second.written == [30.0]


class Killed(Exception):
    """The end of a process."""


@pytest.mark.parametrize("where", ["before the weights", "before the score", "behind both"])
@pytest.mark.parametrize("then", [25.0, 29.0, 30.0, 31.0])
def test_the_better_weights_stay_wherever_a_training_is_killed(
    where: str, then: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """28, then 30 and killed, then from a checkpoint that knows of 28 alone; every weight holds the score it had."""
    model = build_kl(KLConfig(4, 4, *[LevelsConfig(ch=8, widths=(8, 8), num_res_blocks=1)] * 2, num_groups=4))
    trainer: Any = SimpleNamespace(is_global_zero=True, strategy=SimpleNamespace())
    trainer.strategy.barrier = lambda: None

    @contextmanager
    def finished() -> Iterator[Any]:
        yield model

    def judged(checkpoints: Checkpoints, score: float) -> None:
        model.decoder.conv_in.bias.data.fill_(score)
        trainer.callback_metrics = {"val/psnr": torch.tensor(score)}
        module: Any = SimpleNamespace(monitor="val/psnr", finished=finished)
        checkpoints.keep_best(trainer, module)

    def kept() -> float:
        return float(load_file(tmp_path / "best.safetensors")["decoder.conv_in.bias"][0])

    def kill(*given: Any, **options: Any) -> None:
        raise Killed

    first = Checkpoints(tmp_path, "weights.safetensors", "float32", every=1)
    judged(first, 28.0)
    stored = first.state_dict()
    with monkeypatch.context() as patch:
        if where == "before the weights":
            patch.setattr(checkpoint, "save", kill)
        if where == "before the score":
            patch.setattr(checkpoint, "atomic_path", kill)
        with nullcontext() if where == "behind both" else pytest.raises(Killed):
            judged(first, 30.0)
    before = 28.0 if where == "before the weights" else 30.0
    assert kept() == before
    second = Checkpoints(tmp_path, "weights.safetensors", "float32", every=1)
    second.load_state_dict(stored)
    judged(second, then)
    assert kept() == max(before, then)
    assert load_vae(tmp_path / "best.safetensors", device="cpu").latent_channels == 4


def test_the_best_of_a_loss_is_the_smallest_and_another_monitor_begins_anew(tmp_path: Path) -> None:
    best, values = Recorder(tmp_path), (3.0, 4.0, float("nan"), 2.0)
    assert [best.check(value, "val/rec_loss") for value in values] == [True, False, False, True]
    again = Recorder(tmp_path)
    again.load_state_dict({"best": -3.0})  # an old checkpoint; the file is newer
    assert not again.check(2.5, "val/rec_loss")
    assert again.check(1.0, "val/psnr")
    (tmp_path / "best.json").unlink()
    old = Recorder(tmp_path)
    old.load_state_dict({"best": -3.0})
    assert not old.check(3.5, "val/rec_loss")
    assert old.check(2.5, "val/rec_loss")
