"""What a training says about mistakes: the thing that was meant, each once, and the worst first."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae.__main__ import main
from exact_vae.tests.training.case import with_params, write_config
from exact_vae.vae_model.errors import InputError
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny
from exact_vae.vae_model.training.command import train
from exact_vae.vae_model.training.config import LAST, ConfigError
from exact_vae.vae_model.training.fit import prepare
from exact_vae.vae_model.training.recipe import config_from
from torch import Tensor

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("word", "advice"),
    [
        ("modle.params.monitor=x", "modle: .*: say model$"),
        ("modell.params.monitor=x", "modell: .*: say model$"),
        ("optim.lr=1", "optim: .*: say optimizer$"),
        ("trainr.batches=1", "trainr: .*: say trainer$"),
        ("out.folder=x", "out: .*: say output"),
        ("data.train=nowhere", r"data\.train: expected a folder, .*, got nowhere, where nothing is: check the path$"),
        (
            "data.train=[]",
            r"data\.train: expected folders or lists with pictures, got nothing: say data\.train=FOLDER$",
        ),
        ("data.train=5", r"data\.train: expected a list of \(text\), got 5"),
    ],
)
def test_advice_on_words(tmp_path: Path, photos: Path, word: str, advice: str) -> None:
    with pytest.raises(ConfigError) as caught:
        train(write_config(tmp_path, photos), [word], quiet=True)
    assert re.search(advice, str(caught.value)), str(caught.value)


def square(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().mean()


LOSSES: dict[str, tuple[Any, str]] = {
    "float": (lambda *_: 1.0, "got float and dict"),
    "nothing": (lambda *_: None, "got NoneType and dict"),
    "many": (lambda x, y, *_: (x - y).square(), r"got a tensor \(2, 3, \d+, \d+\) and dict"),
    "text": (lambda x, y, *_: (square(x, y), "log"), r"got a tensor \(\) and str"),
    "text inside": (lambda x, y, *_: (square(x, y), {"a": "x"}), "expected single numbers to log, got a as str"),
    "constant": (lambda *_: torch.zeros(()), "expected a loss with gradients, got one without"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_that_return_something_else(tmp_path: Path, photos: Path, name: str) -> None:
    loss, found = LOSSES[name]
    with pytest.raises(ConfigError) as caught:
        _prepared(tmp_path, photos, loss)
    text = str(caught.value)
    assert re.search(found, text), text
    assert text.startswith("lossconfig: expected ")
    assert text.count("expected ") == 1


def _prepared(tmp_path: Path, photos: Path, loss: Any) -> None:
    tree = {"model": with_params(lossconfig=loss), "data": {"train": [str(photos)], "crop": 16, "batch_size": 2}}
    tree |= {"trainer": {"batches": 2, "accelerator": "cpu"}, "output": {"folder": str(tmp_path / "run")}}
    prepare(config_from(tree), progress=False)


def test_each_choice_is_named_once(tmp_path: Path, photos: Path) -> None:
    own = with_params(lossconfig={"target": f"{__name__}.own"}, monitor="val/none")
    with pytest.raises(ConfigError, match="monitor: expected one of ") as caught:
        train(write_config(tmp_path, photos, own), quiet=True)
    names = str(caught.value).partition("one of ")[2].partition(", got")[0].split(", ")
    assert "val/total_loss" in names
    assert len(names) == len(set(names))


def own(x: Tensor, y: Tensor, posterior: Any, step: int, last: Any, split: str) -> tuple[Tensor, dict[str, Tensor]]:
    loss = square(x, y)
    return loss, {f"{split}/total_loss": loss}


def test_a_folder_in_use_is_told_last(tmp_path: Path, photos: Path) -> None:
    config = write_config(tmp_path, photos)
    last = tmp_path / "run" / LAST
    last.parent.mkdir()
    last.write_bytes(b"")
    for word in ("model.params.ddconfig.ch=x", "data.crop=15", "model.params.monitor=val/none"):
        with pytest.raises(ConfigError) as caught:
            train(config, [word], quiet=True)
        assert "output.folder" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"output\.folder: expected one without a training, got .*run: go on with"):
        train(config, quiet=True)
    assert last.read_bytes() == b""


def test_more_batches_than_are_asked_for(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, photos, batches=2, check_every=2)
    assert main(["train", config, "--quiet"]) == 0
    assert main(["train", config, "trainer.batches=1", "--resume"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 batches, more than the 1 that are asked for; weights in ")
    assert "nothing was left to train" in out


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_first_process_alone_speaks(
    tmp_path: Path, photos: Path, rank: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors are said by all, for nobody knows which process meets one."""
    monkeypatch.setattr(logging, "disable", lambda level: logging.root.manager.__setattr__("disable", level))
    config = write_config(tmp_path, photos, batches=1, check_every=1)
    monkeypatch.setenv("NODE_RANK", rank)  # Lightning takes LOCAL_RANK for a launcher's
    try:
        assert main(["train", config, "data.batch_size=2", "data.batch_size=4"]) == 0
        printed = capsys.readouterr()
        with pytest.raises(ConfigError):
            train(config, ["data.cropp=1"])
    finally:
        logging.disable(logging.NOTSET)
    assert ("weights in" in printed.out) is (rank == "0")
    assert ("more than once" in printed.err) is (rank == "0")


def test_words_of_from_pretrained(tmp_path: Path) -> None:
    AutoencoderTiny().save_pretrained(tmp_path)
    wrong: Any = AutoencoderTiny.from_pretrained
    for name, meant in (("torch_dtyp", "torch_dtype"), ("torchdtype", "torch_dtype"), ("varient", "variant")):
        with pytest.raises(InputError, match=f"^from_pretrained: .*got {name}: {meant} is probably meant$"):
            wrong(tmp_path, **{name: None})
