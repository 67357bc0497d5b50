"""`--resume`: to the end, beyond it, and not with another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae.__main__ import main

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae.tests.training.case import curve, train_in_processes, weights, with_params, write_config
from exact_vae.vae_model.training.command import train
from exact_vae.vae_model.training.config import ConfigError

# Lightning 2.6 itself uses what torch has deprecated.
deprecated = pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning")
pytestmark = [pytest.mark.usefixtures("one_thread"), deprecated]
CONSTANT = "optimizer.schedule=constant"
"""So that the first half of a long training is a short one."""


def same(first: Path, second: Path) -> bool:
    """Whether two trainings ended with the same bits."""
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def distillation(tmp_path: Path, photos: Path) -> dict[str, Any]:
    """A tiny decoder and encoder of a teacher that is trained for a batch."""
    if not (tmp_path / "teacher").exists():
        train(write_config(tmp_path / "teacher", photos, batches=1), quiet=True)
    params = {"teacher": str(tmp_path / "teacher" / "run" / "vae.safetensors"), "width": 8, "blocks": 1}
    params |= {"train": ["encoder", "decoder"], "ema_decay": 0.9, "monitor": "val/psnr"}
    return {"target": "TinyDistillation", "params": params | {"lossconfig": {"params": {"terms": {"l1": 1.0}}}}}


@pytest.mark.parametrize("kind", ["batches", "epochs", "stages", "accumulated", "distilled"])
def test_an_ended_training_is_extended(
    kind: str, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four batches, then four more: the bits and the curve of eight."""
    model = distillation(tmp_path, photos) if kind == "distilled" else with_params(monitor="val/psnr")
    words, short, long = [CONSTANT], ["trainer.batches=4"], ["trainer.batches=8"]
    trainer: dict[str, Any] = {"check_every": 2, "batches": None}
    if kind == "epochs":  # of six pictures
        words, short, long = [CONSTANT, "data.batch_size=3"], ["trainer.epochs=2"], ["trainer.epochs=4"]
    if kind == "stages":  # the second begins where the first training ended
        short, long = [*short, "data.stages=[[0,16,4]]"], [*long, "data.stages=[[0,16,4],[0.5,32,2]]"]
    if kind == "accumulated":
        trainer["accumulate"] = 2
    whole = write_config(tmp_path / "whole", photos, model, **trainer)
    parts = write_config(tmp_path / "parts", photos, model, **trainer)
    assert main(["train", whole, *words, *long, "--quiet"]) == 0
    assert main(["train", parts, *words, *short, "--quiet"]) == 0
    assert main(["train", parts, *words, *long, "--resume"]) == 0
    assert "8 of 8 batches; weights in" in capsys.readouterr().out
    assert [row["batch"] for row in curve(tmp_path / "parts")] == [2, 4, 6, 8]
    assert same(tmp_path / "whole", tmp_path / "parts")


def test_what_has_ended_says_so_and_goes_on_when_there_is_more(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice resumed at the end, then twice extended."""
    config = write_config(tmp_path, photos, batches=2, check_every=2)
    assert main(["train", config, "--quiet"]) == 0
    before = (tmp_path / "run" / "last.ckpt").read_bytes()
    for _ in range(2):
        assert main(["train", config, "--resume"]) == 0
        printed = capsys.readouterr().out
        assert "2 of 2 batches" in printed
        assert printed.endswith("nothing was left to train: raise trainer.batches or trainer.epochs to go on\n")
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before
    for batches in (4, 5):
        assert main(["train", config, f"trainer.batches={batches}", "--resume", "--quiet"]) == 0
        assert curve(tmp_path)[-1]["batch"] == batches
    assert main(["train", config, "trainer.batches=3", "--resume"]) == 0
    assert "5 batches, more than the 3 that are asked for" in capsys.readouterr().out


def test_a_time_limit_at_the_end_leaves_a_training_that_goes_on(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over after every batch: the first stops before the end, also when quiet; the second is the end."""
    config = write_config(tmp_path, photos, batches=2, check_every=500, max_minutes=0.0)
    assert main(["train", config, "--quiet"]) == 1
    assert capsys.readouterr().err.endswith("stopped before the end; the same command with --resume goes on\n")
    assert main(["train", config, "--resume", "--quiet"]) == 0
    assert main(["train", config, "--resume", "trainer.batches=3", "--quiet"]) == 0
    assert [row["batch"] for row in curve(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["model.params.ddconfig.ch=16"], r"model\.params\.ddconfig\.ch, 16 instead of 8: put it back"),
        (["model.params.ddconfig.num_groups=2"], r"model\.params\.ddconfig\.num_groups, 2 instead of 4"),
        (["model.params.ddconfig.attn_type=none"], r"ddconfig\.attn_type, 'none' instead of 'vanilla'"),
        (["model.params.embed_dim=3"], r"model\.params\.embed_dim, 3 instead of 4"),
        (["model.params.train=decoder"], r"model\.params\.train, 'decoder' instead of \['encoder', 'decoder'\]"),
        (["model.params.ema_decay=null"], r"model\.params\.ema_decay, None instead of 0\.9"),
        (["optimizer.target=torch.optim.SGD"], r"optimizer\.target, 'torch\.optim\.SGD' instead of"),
        (["model.params.lossconfig.params.disc_weight=0.1"], r"model\.params\.lossconfig, which decides on"),
    ],
)
def test_another_model_is_refused_in_a_line(
    words: list[str], text: str, photos: Path, ended: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (ended / "run" / "last.ckpt").read_bytes()
    with pytest.raises(
        ConfigError, match=r"--resume: expected what .*last\.ckpt was trained with, got another .*" + text
    ):
        train(str(ended / "config.yaml"), ["trainer.batches=4", *words], resume=True, quiet=True)
    assert main(["train", str(ended / "config.yaml"), "trainer.batches=4", *words, "--resume", "--quiet"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (ended / "run" / "last.ckpt").read_bytes() == before


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A training of two batches."""
    folder = tmp_path_factory.mktemp("ended")
    train(write_config(folder, photos, batches=2, check_every=2), quiet=True)
    return folder


def test_what_may_change_does_not_stop_it(tmp_path: Path, photos: Path) -> None:
    """Values that are left out are the defaults; rates, weights of terms and checks are free."""
    config = write_config(tmp_path, photos, with_params(monitor="val/psnr"), batches=2, check_every=2)
    train(config, quiet=True)
    words = ["trainer.batches=3", "model.params.ddconfig.attn_type=vanilla", "model.params.ddconfig.dropout=0.1"]
    words += ["model.params.monitor=val/rec_loss", "model.params.lossconfig.params.kl_weight=1e-4", "optimizer.lr=1e-4"]
    train(config, [*words, "model.target=AutoencoderKL"], resume=True, quiet=True)
    assert curve(tmp_path)[-1]["batch"] == 3


DAMAGE = {
    "empty": "it is empty; ",
    "no checkpoint": "it is cut off, damaged or no checkpoint; ",
    "half": "it is cut off, damaged or no checkpoint; ",
    "changed numbers": "it is damaged: its numbers are not those that were written; ",
    "overwritten beginning": "it is damaged: its numbers are not those that were written; ",
    "another's": "it is not one of this trainer's; ",
    "objects": "it holds objects that are no weights; nothing of them was run; ",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_named(kind: str, tmp_path: Path, photos: Path, ended: Path) -> None:
    """In plain words, and also where torch would read it and go on from other numbers."""
    config = write_config(tmp_path, photos, batches=4)
    path = tmp_path / "run" / "last.ckpt"
    path.parent.mkdir()
    whole = (ended / "run" / "last.ckpt").read_bytes()
    middle, first = len(whole) // 2, whole.index(b"FB")
    contents = {
        "empty": b"",
        "no checkpoint": b"no checkpoint",
        "half": whole[:middle],
        "changed numbers": whole[:middle]
        + bytes(255 - byte for byte in whole[middle : middle + 64])
        + whole[middle + 64 :],
        "overwritten beginning": whole[: first + 200] + bytes(200) + whole[first + 400 :],
    }
    if kind in contents:
        path.write_bytes(contents[kind])
    else:
        torch.save({"weights": torch.zeros(2)} if kind == "another's" else {"state_dict": {}, "path": tmp_path}, path)
    with pytest.raises(ConfigError) as caught:
        train(config, resume=True, quiet=True)
    start = f"--resume: expected a whole checkpoint, got {path}: {DAMAGE[kind]}name another output.folder, and start"
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_two_processes_extend_an_ended_training_and_stop_together(tmp_path: Path, photos: Path) -> None:
    """Two batches, two more as one process makes them, and two that diverge."""
    train(write_config(tmp_path / "one", photos, batches=4, check_every=2), [CONSTANT, "data.batch_size=4"], quiet=True)
    config = write_config(tmp_path / "two", photos, check_every=2, devices=2)
    words = ["trainer.strategy=ddp", "data.batch_size=2", CONSTANT]
    train_in_processes(config, *words, "trainer.batches=2")
    train_in_processes(config, *words, "trainer.batches=4", "--resume")
    assert [row["batch"] for row in curve(tmp_path / "two")] == [2, 4]
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-4)  # only the order of additions differs
    train_in_processes(config, *words, "trainer.batches=8", "optimizer.lr=1e8", "--resume", code=2)
    assert all(torch.equal(two[key], value) for key, value in weights(tmp_path / "two").items())
