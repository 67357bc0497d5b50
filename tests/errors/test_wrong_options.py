"""Arguments of another kind or size than the library takes: one line of InputError each, and never PyTorch's words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import VAE, InputError, VAEFileError, load_vae, save
from exact_vae import model_management as mm
from exact_vae.model_management.exact_vae import make_exact
from exact_vae.vae_model.errors.bytesize import parse_bytes
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")

LINE = r"^[^\n]*expected [^\n]*, (got|found) [^\n]*: [^\n]+$"
NAN = float("nan")


def refused(call: Callable[[], object], word: str) -> None:
    """One line that begins with the argument's name; also a ValueError, as it was before it had a name of its own."""
    with pytest.raises(InputError, match=LINE) as caught:
        call()
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).startswith(word), str(caught.value)


OPTIONS: dict[str, tuple[Any, ...]] = {
    "memory": ("12 potatoes", "", "-2GiB", "2 GiB GiB", "1e9", "0", "1", -1, 0, 0.5, NAN, 1e30, True, [1], b"2GiB"),
    "method": ("Exact", "tiled", "", 5, ["exact"], b"exact", 1.5),
    "tile_size": (0, -8, "64", 1.5, NAN, [64], True),
    "overlap": (-8, "64", 1.5, NAN, [64], False),
    "progress": (5, "x", [print]),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in OPTIONS.items() for value in values])
def test_decode_and_encode(small_vae: VAE, name: str, value: Any) -> None:
    z, x = torch.zeros(1, 4, 3, 3), torch.zeros(1, 24, 24, 3)
    for method in ("exact", "untiled", "blend"):
        options = {"method": method, name: value}
        refused(lambda: small_vae.decode(z, **options), name)  # noqa: B023
        refused(lambda: small_vae.encode(x, **options), name)  # noqa: B023


def test_sizes_that_are_whole_numbers_of_another_kind(small_vae: VAE) -> None:
    z, x = torch.randn(1, 4, 6, 6), torch.rand(1, 48, 48, 3)
    for size in (16.0, torch.tensor(16)):
        for method in ("exact", "blend"):
            assert small_vae.decode(z, method, tile_size=size).equal(small_vae.decode(z, method, tile_size=16))
            assert small_vae.encode(x, method, tile_size=size).equal(small_vae.encode(x, method, tile_size=16))


@pytest.mark.parametrize("value", [0, -4, "4", 1.5])
def test_the_host_s_tiles(small_vae: VAE, value: Any) -> None:
    z, x = torch.zeros(1, 4, 3, 3), torch.zeros(1, 24, 24, 3)
    refused(lambda: small_vae.decode_tiled(z, value, 4), "tile_x")
    refused(lambda: small_vae.encode_tiled(x, 32, value), "tile_y")
    if value:
        refused(lambda: small_vae.decode_tiled(z, 4, 4, value), "overlap")
        refused(lambda: small_vae.encode_tiled(x, 32, 32, value), "overlap")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"timesteps": "2"}, "timesteps"),
        ({"timesteps": 3}, "timesteps"),
        ({"vae_options": 5}, "vae_options"),
        ({"vae_options": [1]}, "vae_options"),
        ({"vae_options": {1: 1, "a": 2}}, "vae_options"),
    ],
)
def test_frames_together(small_vae: VAE, options: dict[str, Any], word: str) -> None:
    refused(lambda: small_vae.decode(torch.zeros(1, 4, 3, 3), **options), word)


@pytest.mark.parametrize("timesteps", ["2", 0, -1, 1.5, [1]])
def test_frames_together_of_a_temporal_decoder(timesteps: Any) -> None:
    from exact_vae.vae_model.runs.checks import check_timesteps

    refused(lambda: check_timesteps(timesteps, 4, temporal=True), "timesteps")
    assert check_timesteps(2, 4, temporal=True) == 2
    assert check_timesteps(None, 4, temporal=True) == 4


@pytest.mark.parametrize("value", ["x", 5, [1]])
def test_not_video(small_vae: VAE, value: Any) -> None:
    refused(lambda: small_vae.encode(torch.zeros(1, 24, 24, 3), not_video=value), "not_video")


LOADING: dict[str, tuple[Any, ...]] = {
    "dtype": ("float8", "int8", "", "halb", 5, None, [1], torch.int8, torch.float8_e4m3fn),
    "device": ("gpu", "cuda:x", "vulkan", "meta", "", "cpu:7", 5, -1, None, [1], torch.device("meta")),
    "config": (5, "x", [1]),
    "host": (5, "x"),
    "part": (5, [1]),
    "variant": (5, [1]),
    "latent_format": (5, "x", [1], ""),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in LOADING.items() for value in values])
def test_load_vae(name: str, value: Any) -> None:
    refused(lambda: load_vae(**{"dtype": "float32", "device": "cpu", name: value}), name)


@pytest.mark.parametrize("value", [5, None, [], "", b"x", [None], object()])
def test_load_vae_of_no_source(value: Any) -> None:
    refused(lambda: load_vae(value, dtype="float32", device="cpu"), "load_vae")


def test_load_vae_of_a_vae_and_vae_of_a_path(small_vae: VAE, small_file: Path) -> None:
    refused(lambda: load_vae(small_vae), "load_vae: expected a file or a model, got a VAE: use it")
    wrong: Any = VAE
    for given in (small_file, str(small_file), nn.Linear(2, 2), small_vae.first_stage_model):
        refused(lambda: wrong(given), f"VAE: expected what load_model returns, got {type(given).__name__}")  # noqa: B023


@pytest.mark.parametrize("device", ["gpu", 5, [1], ""])
def test_devices_of_model_management(device: Any) -> None:
    layer = nn.Linear(2, 2)
    for call in (
        lambda: mm.get_free_memory(device),
        lambda: mm.get_total_memory(device),
        lambda: mm.vae_dtype(device),
        lambda: mm.load_model(layer, device),
        lambda: mm.free_memory(1, device),
    ):
        refused(call, "device")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one here")
def test_a_device_that_is_not_here() -> None:
    for call in (
        lambda: mm.get_free_memory("cuda"),
        lambda: mm.get_total_memory("cuda:0"),
        lambda: mm.vae_dtype("cuda"),
    ):
        refused(call, "device: expected a device that is here, got 'cuda")


@pytest.mark.parametrize("amount", ["12 potatoes", -1, None, [1], True])
def test_amounts_of_model_management(amount: Any) -> None:
    layer = nn.Linear(2, 2)
    refused(lambda: mm.free_memory(amount, "cpu"), "memory")
    refused(lambda: mm.load_model(layer, "cpu", amount), "memory")
    refused(lambda: mm.load_models_gpu([layer], amount), "memory")
    assert mm.free_memory(0, "cpu") == mm.free_memory("1 MiB", "cpu") == 0


@pytest.mark.parametrize("model", [None, 5, "x"])
def test_models_of_model_management(model: Any) -> None:
    refused(lambda: mm.load_model(model, "cpu"), "load_model")
    refused(lambda: mm.unload_model(model), "unload_model")


def test_a_vae_is_a_model_to_model_management(small_vae: VAE) -> None:
    given: Any = small_vae
    mm.load_model(given, "cpu", "1 MiB")
    mm.unload_model(given)


def test_memory_of_a_vae_made_exact(small_vae: VAE) -> None:
    refused(lambda: make_exact(small_vae, "12 potatoes"), "memory")
    assert parse_bytes(torch.tensor(5)) == parse_bytes(5.5) == 5


# -- save --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "word"),
    [
        *[({"layout": layout}, "layout: expected one of ldm, ") for layout in ("ldmx", "", 5, [1])],
        *[({"dtype": dtype}, "dtype: expected ") for dtype in ("x", 5, [1], torch.int8, torch.bool, torch.complex64)],
    ],
)
def test_save_options(small_vae: VAE, tmp_path: Path, options: dict[str, Any], word: str) -> None:
    refused(lambda: save(small_vae, tmp_path / "a.safetensors", **options), word)
    assert list(tmp_path.iterdir()) == []


def test_save_to_no_path(small_vae: VAE, tmp_path: Path) -> None:
    missing, wrong = tmp_path / "no" / "a.safetensors", [None, 5, b"x.safetensors", [1]]
    for path in wrong:
        refused(lambda: save(small_vae, path), "save: expected a path after the VAE, got ")  # type: ignore[arg-type] # noqa: B023
    refused(lambda: save(small_vae, "a.pt"), "save: expected a name ending in .safetensors, got 'a.pt'")
    refused(lambda: save(small_vae, missing), f"save: expected a folder that is there, got {missing.parent}")


@pytest.mark.parametrize("dtype", ["float16", "fp16", "torch.float16"])
def test_save_takes_names_of_dtypes(small_vae: VAE, tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "a.safetensors"
    save(small_vae, path, dtype=dtype)
    assert load_vae(path, device="cpu", dtype="float32").loaded.stored_dtype == torch.float16


class Discriminator(nn.Sequential):
    """A network of images that is no autoencoder."""


NO_AUTOENCODERS: dict[str, tuple[Any, str]] = {
    "layer": (nn.Linear(3, 3), "Linear, which has neither encoder nor decoder: give the autoencoder itself"),
    "discriminator": (Discriminator(nn.Conv2d(3, 8, 4), nn.Conv2d(8, 1, 4)), "Discriminator, which has neither "),
    "nothing": (None, "nothing: load a VAE by load_vae"),
    "state dict": ({"encoder.conv_in.weight": torch.zeros(1)}, "a dictionary: open a state dict by load_vae"),
    "path": ("vae.safetensors", "the path 'vae.safetensors': give the VAE first, then the path"),
    "pathlib": (Path("vae.safetensors"), "the path 'vae.safetensors': give the VAE first, then the path"),
    "number": (5, "int: load a VAE by load_vae"),
    "tensor": (torch.zeros(1), "Tensor: load a VAE by load_vae"),
}


@pytest.mark.parametrize("name", NO_AUTOENCODERS)
def test_save_of_what_is_no_autoencoder(name: str, small_vae: VAE, tmp_path: Path) -> None:
    """The first is told even where the path is wrong, too: the arguments may be the wrong way round."""
    given, found = NO_AUTOENCODERS[name]
    line = f"save: expected a VAE of load_vae, its model or a training's module, got {found}"
    for path in (tmp_path / "a.safetensors", small_vae):
        refused(lambda: save(given, path), line)  # noqa: B023
    assert list(tmp_path.iterdir()) == []


def test_save_of_an_autoencoder_of_another_kind(tmp_path: Path) -> None:
    """It says no more that the layout is to be the one that it is."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3)

    for layout in (None, "ldm", "diffusers"):
        with pytest.raises((InputError, VAEFileError), match=LINE) as caught:
            save(Own(), tmp_path / "a.safetensors", layout=layout)
        assert layout == "diffusers" or "in the ldm layout" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
