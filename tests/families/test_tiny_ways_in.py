"""A tiny VAE's scale and shift have one reading, however it is loaded: raw = z / scale + shift, z its network's."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae, save
from exact_vae.vae_model.checkpoint.convert import convert_vae
from exact_vae.vae_model.checkpoint.save import to_layout
from exact_vae.vae_model.errors import VAEFileError
from exact_vae.vae_model.families.latent_formats import LATENT_FORMATS
from exact_vae.vae_model.families.table import FAMILIES
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

pytestmark = pytest.mark.usefixtures("no_gradients")

PIXELS = torch.rand(1, 16, 24, 3, generator=torch.Generator().manual_seed(1))
Way = Callable[[AutoencoderTiny, Path], Any]


def make(channels: int = 4, **change: Any) -> AutoencoderTiny:
    torch.manual_seed(channels)
    shape: dict[str, Any] = {f"{half}_block_out_channels": (4, 4) for half in ("encoder", "decoder")}
    shape |= {f"num_{half}_blocks": (1, 1) for half in ("encoder", "decoder")}
    return AutoencoderTiny(latent_channels=channels, **shape, **change).eval()


def folder_of(model: AutoencoderTiny, place: Path) -> Path:
    model.save_pretrained(place / "folder")
    return place / "folder"


def file_of(model: Any, place: Path, layout: str | None = None) -> Path:
    save(model, place / "a.safetensors", layout=layout)
    return place / "a.safetensors"


def halves_of(model: AutoencoderTiny, place: Path) -> list[Path]:
    paths = [place / f"my_{half}.safetensors" for half in ("encoder", "decoder")]
    for path, half in zip(paths, ("encoder", "decoder"), strict=True):
        save(model, path, layout=f"taesd-{half}")
    return paths


def converted(model: AutoencoderTiny, place: Path) -> Path:
    convert_vae([str(folder_of(model, place))], place / "converted", "diffusers")
    return place / "converted"


def plain_file(model: AutoencoderTiny, place: Path) -> Path:
    """Weights without a header, beside the config.json."""
    folder = folder_of(model, place)
    save_file(to_layout(model, "taesd-diffusers"), folder / "diffusion_pytorch_model.safetensors")
    return folder / "diffusion_pytorch_model.safetensors"


WAYS: dict[str, Way] = {
    "module": lambda model, _: model,
    "folder": folder_of,
    "module of folder": lambda model, place: AutoencoderTiny.from_pretrained(folder_of(model, place)),
    "file": file_of,
    "file of ComfyUI's layout": lambda model, place: file_of(model, place, "taesd-comfyui"),
    "halves": halves_of,
    "weights and config.json": plain_file,
    "file of folder's VAE": lambda model, place: file_of(load_vae(folder_of(model, place), dtype="float32"), place),
    "converted folder": converted,
}
UNTIL_NAMED = ("weights and config.json",)
"""Ways that keep two numbers, but no name of a format."""


def load(source: Any, **options: Any) -> Any:
    return load_vae(source, device="cpu", dtype="float32", **options)


def expected(model: AutoencoderTiny, scale: float, shift: float) -> tuple[Tensor, Tensor]:
    """Raw latents of the picture, and the picture of them."""
    z = model.encode(PIXELS.movedim(-1, 1) * 2 - 1)[0]
    raw = z / scale + shift
    return raw, ((model.decode((raw - shift) * scale)[0] + 1) / 2).clamp(0, 1).movedim(1, -1)


def require(vae: Any, model: AutoencoderTiny, scale: float, shift: float) -> None:
    raw, image = expected(model, scale, shift)
    torch.testing.assert_close(vae.encode(PIXELS), raw, rtol=1e-6, atol=1e-5)  # float32's rounding
    torch.testing.assert_close(vae.decode(raw), image, rtol=0, atol=1e-5)


def is_raw(vae: Any) -> bool:
    return FAMILIES[vae.loaded.family].knows_raw(vae.loaded.config, vae.loaded.hints)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scale=st.sampled_from([1.0, 0.5, 0.18215, 3.0, -2.0]) | st.floats(0.1, 4),
    shift=st.sampled_from([0.0, 0.3]) | st.floats(-2, 2),
    wanted=st.sampled_from([None, "raw", "sd", "sdxl"]),
    data=st.data(),
)
def test_every_way_in_reads_the_same_numbers(
    scale: float, shift: float, wanted: str | None, data: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = make(scaling_factor=scale, shift_factor=shift)
    numbers = (scale, shift) if wanted is None else (LATENT_FORMATS[wanted].scale, LATENT_FORMATS[wanted].shift)
    latents: list[Tensor] = []
    vaes: list[Any] = []
    for way in WAYS.values():
        vae = load(way(model, tmp_path_factory.mktemp("way")), latent_format=wanted)
        require(vae, model, *numbers)
        assert is_raw(vae) is (wanted is not None or numbers != (1.0, 0.0))
        vaes.append(vae)
        latents.append(vae.encode(PIXELS))
    assert all(torch.equal(latents[0], other) for other in latents[1:])
    one, other = (data.draw(st.integers(0, len(vaes) - 1)) for _ in range(2))
    assert torch.equal(vaes[one].decode(latents[other]), vaes[other].decode(latents[other]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "channels"), [("sd", 4), ("sdxl", 4), ("raw", 4), ("sd3", 16), ("flux", 16)])
def test_a_format_that_was_told_is_kept_on_every_way(way: str, name: str, channels: int, tmp_path: Path) -> None:
    model, one = make(channels, scaling_factor=0.7), LATENT_FORMATS[name]
    model.scaling_factor, model.shift_factor, model.latent_format = one.scale, one.shift, name
    vae = load(WAYS[way](model, tmp_path))
    kept = way not in UNTIL_NAMED
    assert is_raw(vae) is kept
    require(vae, model, one.scale if kept else 1.0, one.shift if kept else 0.0)


@pytest.mark.parametrize(("scale", "shift"), [(0.5, 0.0), (1.0, 0.3), (1.0, 0.0), (0.18215, 0.25)])
def test_a_state_dict_with_its_configuration(scale: float, shift: float, tmp_path: Path) -> None:
    model = make(scaling_factor=scale, shift_factor=shift)
    fields = json.loads((folder_of(model, tmp_path) / "config.json").read_text())
    for config in (model.config, fields):
        vae = load(model.state_dict(), config=config)
        require(vae, model, scale, shift)
        assert is_raw(vae) is ((scale, shift) != (1.0, 0.0))
    require(load(model.state_dict(), config=fields, latent_format="raw"), model, 1.0, 0.0)
    require(load(model.state_dict(), config={"vae_scale": 0.7}), model, 0.7, 0.0)


@pytest.mark.parametrize("way", WAYS)
def test_who_loads_counts_more_than_what_is_there(way: str, tmp_path: Path) -> None:
    model = make(scaling_factor=0.5, shift_factor=0.3)
    source = WAYS[way](model, tmp_path)
    require(load(source, config={"scaling_factor": 0.25}), model, 0.25, 0.3)
    require(load(source, config={"scaling_factor": 1.0, "shift_factor": 0.0}), model, 0.5, 0.3)  # tells nothing
    untold = WAYS[way](make(), tmp_path)
    require(load(untold, config={"scaling_factor": 0.25}), make(), 0.25, 0.0)


@pytest.mark.parametrize(("scale", "shift"), [(0.5, 0.3), (1.0, 0.0)])
def test_models_and_folders_of_diffusers(scale: float, shift: float, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    model = make(scaling_factor=scale, shift_factor=shift)
    theirs = diffusers.AutoencoderTiny.from_pretrained(folder_of(model, tmp_path), low_cpu_mem_usage=False).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    save(theirs, tmp_path / "b.safetensors")
    sources = (theirs, tmp_path / "theirs", tmp_path / "b.safetensors")
    for source in (*sources, AutoencoderTiny.from_pretrained(tmp_path / "theirs")):
        require(load(source), model, scale, shift)
        require(load(source, latent_format="raw"), model, 1.0, 0.0)
        require(load(source, latent_format="sd"), model, 0.18215, 0.0)


def test_a_folder_s_name_counts_for_its_module_too(tmp_path: Path) -> None:
    model = make(16)
    model.save_pretrained(tmp_path / "taesd3")
    named = AutoencoderTiny.from_pretrained(tmp_path / "taesd3")
    assert (named.scaling_factor, named.shift_factor, named.latent_format) == (1.5305, 0.0609, "sd3")
    assert named.config["scaling_factor"] == 1.0  # as published
    for source in (tmp_path / "taesd3", named):
        require(load(source), model, 1.5305, 0.0609)
    asked = AutoencoderTiny.from_pretrained(tmp_path / "taesd3", scaling_factor=0.5)
    assert (asked.scaling_factor, asked.shift_factor, asked.latent_format) == (0.5, 0.0, None)


def test_where_nobody_tells_every_way_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for way in ("module", "folder", "module of folder", "file", "halves"):
            caplog.clear()
            assert not is_raw(load(WAYS[way](make(), tmp_path)))
            assert ["expected a tiny VAE whose scale is known" in text for text in caplog.messages] == [True]


@pytest.mark.parametrize("value", ["two", 0, [1]])
def test_what_is_no_scale_is_one_line(value: Any, tmp_path: Path) -> None:
    folder = folder_of(make(), tmp_path)
    fields = json.loads((folder / "config.json").read_text()) | {"scaling_factor": value}
    (folder / "config.json").write_text(json.dumps(fields))
    for read in (load, AutoencoderTiny.from_pretrained):
        with pytest.raises(VAEFileError, match="scale") as caught:
            read(folder)
        assert "\n" not in str(caught.value)
