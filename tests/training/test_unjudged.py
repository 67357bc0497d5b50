"""Trainings without pictures to judge: they say so, and leave everything that can be had without."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae import load_vae
from exact_vae.__main__ import main
from exact_vae.tests.training.case import curve, interrupt_at, weights, with_params, write_config
from exact_vae.vae_model.files.images import read_image
from exact_vae.vae_model.training.fit import prepare, run
from exact_vae.vae_model.training.recipe import read_config

# Lightning 2.6 itself uses what torch has deprecated.
deprecated = pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning")
pytestmark = [pytest.mark.usefixtures("one_thread"), deprecated]
NOTE = (
    "exact-vae: data.val: no pictures are given, hence no PSNR and SSIM, no reconstructions and no best.safetensors; "
    "checkpoint, weights, curve of the loss and samples are written all the same: say data.val=FOLDER to have them, "
    "and for best.safetensors model.params.monitor=val/psnr, too\n"
)
MONITORED = (
    "exact-vae: data.val: no pictures are given, hence no PSNR and SSIM, no reconstructions and no best.safetensors "
    "(model.params.monitor val/psnr has nothing to go by); checkpoint, weights, curve of the loss and samples are "
    "written all the same: say data.val=FOLDER to have them\n"
)


def test_the_curve_and_samples_are_there_and_a_note_says_what_is_not(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With dropout, which must be off for samples and on again for the next batch: the weights are the same bits."""
    ddconfig = with_params()["params"]["ddconfig"] | {"dropout": 0.2}
    model = with_params(ddconfig=ddconfig, monitor="val/psnr")
    judged = write_config(tmp_path / "judged", photos, model, batches=4, check_every=2)
    assert main(["train", judged]) == 0
    assert "data.val" not in capsys.readouterr().err
    config = write_config(tmp_path / "not", photos, model, batches=4, check_every=2)
    assert main(["train", config, "data.val=[]"]) == 0
    assert capsys.readouterr().err.count(MONITORED) == 1
    expected, found = weights(tmp_path / "judged"), weights(tmp_path / "not")
    assert all(torch.equal(expected[key], found[key]) for key in expected)

    rows, with_judging = curve(tmp_path / "not"), curve(tmp_path / "judged")
    assert [(row["batch"], row["loss"]) for row in rows] == [(row["batch"], row["loss"]) for row in with_judging]
    assert {name for row in rows for name in row} == {"batch", "loss", "minutes"}
    folder = tmp_path / "not" / "run"
    assert sorted(path.name for path in folder.iterdir()) == [
        "images", "last.ckpt", "log", "training.json", "vae.safetensors",
    ]  # fmt: skip
    pictures = sorted(path.name for path in (folder / "images").iterdir())
    assert pictures == ["00000002_samples.png", "00000004_samples.png"]
    for name in pictures:
        same = tmp_path / "judged" / "run" / "images" / name
        assert (folder / "images" / name).read_bytes() == same.read_bytes()
    vae = load_vae(folder / "vae.safetensors", device="cpu", dtype="float32")
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    sheet, _ = read_image(folder / "images" / "00000004_samples.png")
    torch.testing.assert_close(sheet[:, :, :128], vae.decode(noise), rtol=0, atol=0.5 / 255 + 1e-4)  # eight bits


@pytest.mark.parametrize("judged", [False, True])
@pytest.mark.parametrize("monitor", [None, "val/psnr"])
def test_the_files_are_those_that_the_note_promises(
    monitor: str | None, judged: bool, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, photos, with_params(monitor=monitor), batches=1)
    assert main(["train", config, *([] if judged else ["data.val=[]"])]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("exact-vae: data.val:") == (0 if judged else 1)
    assert judged or (NOTE if monitor is None else MONITORED) in printed.err
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"last.ckpt", "vae.safetensors", "training.json", "images"} <= names
    assert ("best.safetensors" in names) == (judged and monitor is not None)
    assert ("judged after batch 1: PSNR" in printed.out) == judged
    pictures = {path.name for path in (tmp_path / "run" / "images").iterdir()}
    assert pictures == {"00000001_samples.png", *(["00000001.png"] if judged else [])}


def test_a_note_promises_no_pictures_where_none_are_drawn(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, photos, batches=1)
    assert main(["train", config, "data.val=[]", "output.grids=0"]) == 0
    found = [line for line in capsys.readouterr().err.splitlines() if "data.val" in line]
    assert found == [
        NOTE.replace(", no reconstructions", "")
        .replace(", curve of the loss and samples", " and curve of the loss")
        .rstrip()
    ]


def test_quiet_hides_the_note(tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path, photos, batches=1)
    assert main(["train", config, "data.val=[]", "output.grids=0", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert [row["batch"] for row in curve(tmp_path)] == [1]
    assert not (tmp_path / "run" / "images").exists()


def test_interrupted_and_resumed_it_leaves_the_same_curve(tmp_path: Path, photos: Path) -> None:
    """Interrupted where no check is due, so nothing is drawn there."""
    whole, parts = (write_config(tmp_path / name, photos, batches=4, check_every=2) for name in ("whole", "parts"))
    assert main(["train", whole, "data.val=[]", "--quiet"]) == 0
    prepared = prepare(read_config(parts, ["data.val=[]"]), progress=False)
    prepared.trainer.callbacks.insert(0, interrupt_at(3, signal.SIGINT))
    run(prepared)
    assert prepared.module.batches_done == 3
    assert main(["train", parts, "data.val=[]", "--quiet", "--resume"]) == 0
    rows = [[(row["batch"], row["loss"]) for row in curve(tmp_path / name)] for name in ("whole", "parts")]
    assert rows[0] == rows[1]
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(expected[key], found[key]) for key in expected)
