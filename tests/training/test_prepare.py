"""Pictures of 1, 3 and 4 channels, and everything that would end a training later, before its first batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_vae.__main__ import main
from exact_vae.vae_model.files.images import read_image, read_photo
from exact_vae.vae_model.training.photo_set import PhotoSet
from PIL import Image

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae import load_vae
from exact_vae.tests.training.case import curve, weights, with_params, write_config
from exact_vae.vae_model.errors import InputError
from exact_vae.vae_model.training.command import train
from exact_vae.vae_model.training.fit import prepare
from exact_vae.vae_model.training.recipe import read_config

# Lightning 2.6 itself uses what torch has deprecated.
deprecated = pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning")
pytestmark = [pytest.mark.usefixtures("one_thread"), deprecated]


def model_of(channels: int, out: int | None = None, **params: Any) -> dict[str, Any]:
    """The tiny model for images of so many channels."""
    ddconfig = with_params()["params"]["ddconfig"] | {"in_channels": channels, "out_ch": out or channels}
    return with_params(ddconfig=ddconfig, **params)


@pytest.fixture(scope="module")
def opaque(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of every mode: colour, grey of 8 and 16 bits, palette, and three ways to be transparent."""
    folder = tmp_path_factory.mktemp("modes")
    values = np.random.default_rng(0).integers(0, 256, (40, 48, 4), dtype=np.uint8)
    rgba = Image.fromarray(values)
    rgba.save(folder / "rgba.png")
    for mode in ("RGB", "L", "LA", "P", "1"):
        rgba.convert("RGB").convert(mode).save(folder / f"{mode}.png")
    rgba.convert("RGB").save(folder / "keyed.png", transparency=tuple(int(v) for v in values[0, 0, :3]))
    Image.fromarray(values[..., 0].astype(np.uint16) * 257).save(folder / "wide.png")
    return folder


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_pictures_are_read_with_as_many_channels(opaque: Path, channels: int, mode: str) -> None:
    """What Pillow converts them to itself; its own conversion of 16-bit grey cuts off instead of scaling."""
    for path in sorted(opaque.iterdir()):
        pixels = read_photo(path, channels)
        assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (channels, 40, 48))
        with Image.open(path) as stored:
            grey = Image.fromarray((np.asarray(stored) // 257).astype(np.uint8)) if path.stem == "wide" else stored
            expected = np.asarray(grey.convert(mode)).reshape(40, 48, channels)
        assert torch.equal(pixels, torch.tensor(expected).permute(2, 0, 1)), path.name
    assert read_photo(opaque / "RGB.png", 4)[3].unique().tolist() == [255]
    assert sorted(read_photo(opaque / "keyed.png", 4)[3].unique().tolist()) == [0, 255]
    assert read_image(opaque / "rgba.png")[1] == ["alpha channel dropped"]
    assert read_image(opaque / "rgba.png", 4)[1] == []
    cached = PhotoSet(sorted(opaque.iterdir()), 2**30, channels)[0]
    assert cached is not None
    assert cached.shape[0] == channels


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_models_of_their_channels_train(tmp_path: Path, opaque: Path, channels: int) -> None:
    loss = {"params": {"disc_weight": 0.1, "disc_width": 4, "disc_layers": 1, "in_channels": channels}}
    config = write_config(tmp_path, opaque, model_of(channels, lossconfig=loss), batches=2, check_every=2)
    train(config, quiet=True)
    assert weights(tmp_path)["encoder.conv_in.weight"].shape[1] == channels
    assert curve(tmp_path)[0]["psnr"] > 5
    model = load_vae(tmp_path / "run" / "vae.safetensors", device="cpu").first_stage_model
    assert model.decode(torch.zeros(1, 4, 4, 4)).shape == (1, channels, 8, 8)
    with Image.open(next((tmp_path / "run" / "images").iterdir())) as sheet:
        assert sheet.mode == "RGB"


def refused(tmp_path: Path, photos: Path, model: dict[str, Any], words: list[str], text: str) -> None:
    """In one line, with nothing written; and the command ends with 2."""
    config = write_config(tmp_path, photos, model, batches=4)
    with pytest.raises(InputError, match=text) as caught:
        train(config, words, quiet=True)
    assert "\n" not in str(caught.value)
    assert main(["train", config, *words, "--quiet"]) == 2
    assert not list((tmp_path / "run").rglob("*"))


@pytest.mark.parametrize(
    ("channels", "out", "text"),
    [
        (2, 2, r"in_channels: expected 1 \(grey\), 3 \(colour\) or 4 \(colour and opacity\), got 2"),
        (6, 3, r"in_channels: expected 1 .* got 6"),
        (3, 1, r"out_ch: expected as many channels as in_channels \(3\), got 1: make them equal"),
        (4, 3, r"out_ch: expected as many channels as in_channels \(4\), got 3"),
    ],
)
def test_other_channels_are_refused(tmp_path: Path, photos: Path, channels: int, out: int, text: str) -> None:
    refused(tmp_path, photos, model_of(channels, out), [], text)


@pytest.mark.parametrize(
    ("params", "words", "text"),
    [
        ({}, ["model.params.ema_decay=2"], r"ema_decay: expected 0 to 1, got 2"),
        ({}, ["optimizer.params={betas: [0.9, 0.99], momentum: 1}"], r"optimizer\.params: .*momentum"),
        (
            {},
            ["optimizer.target=torch.optim.LBFGS"],
            r"an optimizer of plain steps .* got torch\.optim\.LBFGS",
        ),
        ({}, ["optimizer.target=torch.optim.SparseAdam"], r"got torch\.optim\.SparseAdam"),
        ({}, ["optimizer.target=Adam"], r"optimizer\.target.*got Adam"),
        (
            {"disc_weight": 0.1},
            [],
            r"data\.crop, .* got 4 x 3 x 16 x 16 pixels that cannot be trained: .*at least 24 x 24",
        ),
        (
            {"disc_weight": 0.1, "disc_layers": 1, "in_channels": 1},
            [],
            r"lossconfig\.params\.in_channels \(or disc_in_channels\): expected 3 as the images have, got 1",
        ),
        (
            {"disc_weight": 0.1, "disc_layers": 1, "disc_width": 4},
            ["optimizer.discriminator_params={decay: 1}"],
            r"optimizer\.discriminator_params: .*decay",
        ),
        (
            {"disc_weight": 0.1, "disc_layers": 2, "disc_width": 4, "disc_norm": "batch"},
            ["data.crop=8", "data.batch_size=1"],
            r"got 1 x 3 x 8 x 8 pixels that cannot be trained: .*at least 12 x 12 pixels, got 8 x 8",
        ),
        ({}, ["trainer.accelerator=no_such"], r"trainer: expected what this machine has, got .*no_such"),
        ({}, ["output.weights=best.safetensors"], r"output\.weights: expected another name than that of the best"),
    ],
)
def test_what_would_end_it_later_is_told_at_once(
    params: dict[str, Any], words: list[str], text: str, tmp_path: Path, photos: Path
) -> None:
    refused(tmp_path, photos, with_params(lossconfig={"params": params}), words, text)


def test_colour_terms_are_refused_for_grey_pictures(tmp_path: Path, photos: Path) -> None:
    loss = {"params": {"terms": {"opponent": 1.0}}}
    refused(
        tmp_path, photos, model_of(1, lossconfig=loss), [], r"terms for images of 1 channels, got opponent, for 3 alone"
    )


def test_what_no_file_can_hold_is_refused(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A norm with an eps of its own, which nothing in a file tells."""
    from exact_vae.vae_model.training.architecture import STARTS

    monkeypatch.setitem(STARTS, "skip", lambda model: setattr(model.encoder.mid.block_1.norm1, "eps", 1e-3))
    refused(tmp_path, photos, with_params(), [], r"^model\.params: expected .*block_1\.norm1 .*eps=0\.001")


def test_the_rehearsal_leaves_no_trace(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in weights, not in the statistics of a BatchNorm, not in the random numbers, whichever way it tries."""
    from exact_vae.vae_model.training import fit, rehearsal

    loss = {"params": {"disc_weight": 0.1, "disc_layers": 1, "disc_width": 4, "disc_norm": "batch"}}
    config = read_config(write_config(tmp_path, photos, with_params(lossconfig=loss), batches=4))
    found: list[Any] = []
    for kind in ("without", "of a small batch", "with fake tensors", "with values"):
        monkeypatch.undo()
        if kind.startswith("with "):
            monkeypatch.setattr(rehearsal, "SMALL", 0)
        if kind == "without":
            monkeypatch.setattr(fit, "rehearse", lambda *_: None)
        if kind == "with values":  # as where a loss looks at them
            monkeypatch.setattr(rehearsal, "FakeTensorMode", _none)
        module = prepare(config, progress=False).module
        found.append((module.state_dict(), torch.get_rng_state(), module.training))
    for state, random_numbers, training in found[1:]:
        assert state.keys() == found[0][0].keys()
        assert [name for name, value in state.items() if not torch.equal(value, found[0][0][name])] == []
        assert torch.equal(random_numbers, found[0][1])
        assert training


def _none(**_: Any) -> Any:
    raise RuntimeError("no fake tensors")
