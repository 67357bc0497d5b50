"""The scale of tiny VAEs: told by names, files, config.json or an option, the same for node, library and command line.

raw = z / scale + shift, z being what the network works on. Where nobody tells the two numbers, latents are not raw, are
not marked as raw, and every run says so.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.__main__ import main
from exact_vae.vae_model.checkpoint.convert import convert_vae
from exact_vae.vae_model.checkpoint.describe import describe_vae
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.checkpoint.save import save, to_layout
from exact_vae.vae_model.errors import InputError
from exact_vae.vae_model.families.latent_formats import LATENT_FORMATS, TINY_FORMATS
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny
from exact_vae.vae_model.files.images import read_image, write_image
from exact_vae.vae_model.files.latents import read_latent
from exact_vae.vae_model.training.distill import TinyDistillation
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("no_gradients")

# What the diffusion models' own configurations say.
PUBLISHED = {
    "taesd": (4, 0.18215, 0.0),
    "taesdxl": (4, 0.13025, 0.0),
    "taesd3": (16, 1.5305, 0.0609),
    "taef1": (16, 0.3611, 0.1159),
    "taef2": (32, 1.0, 0.0),
}
NOT_TOLD = "expected a tiny VAE whose scale is known"


def make_tiny(channels: int = 4, **change: Any) -> AutoencoderTiny:
    torch.manual_seed(channels)
    half: dict[str, Any] = {f"{half}_block_out_channels": (8, 8) for half in ("encoder", "decoder")}
    blocks: dict[str, Any] = {f"num_{half}_blocks": (1, 1) for half in ("encoder", "decoder")}
    return AutoencoderTiny(**half, **blocks, latent_channels=channels, **change).eval()


def write_pair(folder: Path, stem: str, model: AutoencoderTiny) -> list[str]:
    """As they are published: two bare files, nothing beside the weights."""
    folder.mkdir(exist_ok=True, parents=True)
    paths = [folder / f"{stem}_{half}.safetensors" for half in ("encoder", "decoder")]
    for half, path in zip(("encoder", "decoder"), paths, strict=True):
        save_file(to_layout(model, f"taesd-{half}"), path)
    return [str(path) for path in paths]


def numbers(source: Any, **options: Any) -> tuple[float, float, str | None]:
    config: Any = load_model(source, **options).config
    return config.scaling_factor, config.shift_factor, config.latent_format


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    write_image(torch.rand(32, 24, 3, generator=torch.Generator().manual_seed(0)), tmp_path / "a.png")
    return tmp_path / "a.png"


def own_latent(model: AutoencoderTiny, picture: Path) -> Tensor:
    return model.encode(read_image(picture)[0].movedim(-1, 1) * 2 - 1)[0]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Without the word on act_fn, which networks as narrow as these get, for none of them is published."""
    return [message for message in caplog.messages if ": taken are act_fn as relu, upsample_fn" not in message]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_pairs_by_name(name: str, tmp_path: Path, picture: Path, caplog: pytest.LogCaptureFixture) -> None:
    channels, scale, shift = PUBLISHED[name]
    model = make_tiny(channels)
    pair = write_pair(tmp_path / "approx", name, model)
    raw = own_latent(model, picture) / scale + shift
    vae = load_vae(pair, device="cpu", dtype="float32")
    torch.testing.assert_close(vae.encode(read_image(picture)[0]), raw, rtol=0, atol=1e-5)  # float32's rounding
    decoded = ((model.decode((raw - shift) * scale)[0] + 1) / 2).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(vae.decode(raw), decoded, rtol=0, atol=1e-5)
    out = tmp_path / "z.safetensors"
    vaes = ["--vae", pair[0], "--vae", pair[1], "--dtype", "float32", "--device", "cpu", "--quiet"]
    assert main(["encode", str(picture), "-o", str(out), *vaes]) == 0
    assert "latent_format_version_0" in load_file(out)
    torch.testing.assert_close(load_file(out)["latent_tensor"], raw, rtol=0, atol=1e-5)
    assert not said(caplog)
    facts = describe_vae(pair)
    assert facts["scale and shift"] == f"{scale:g} and {shift:g}, of {LATENT_FORMATS[TINY_FORMATS[name]].models}"
    assert facts["not told by the weights"] == "nothing that is needed"


SNAPSHOT = f"models--madebyollin--taesdxl/snapshots/{'0123456789' * 4}"


@pytest.mark.parametrize(
    ("path", "channels", "told"),
    [
        ("TAESDXL_v1.safetensors", 4, "sdxl"),
        ("taesd-vae.safetensors", 4, "sd"),
        ("my.taesd3.fp16.safetensors", 16, "sd3"),
        ("taesdxl/diffusion_pytorch_model.safetensors", 4, "sdxl"),
        (f"{SNAPSHOT}/diffusion_pytorch_model.safetensors", 4, "sdxl"),
        ("taesd/other.safetensors", 4, None),  # a folder counts only where files have no name of their own
        ("taesd.safetensors", 16, None),  # those are not its channels
        ("mytaesdlike.safetensors", 4, None),
        ("retaesd.safetensors", 4, None),
    ],
)
def test_names(path: str, channels: int, told: str | None, tmp_path: Path) -> None:
    target = tmp_path / path
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(to_layout(make_tiny(channels), "taesd-diffusers"), target)
    found = LATENT_FORMATS[told] if told else LATENT_FORMATS["raw"]
    assert numbers(target) == (found.scale, found.shift, told)
    folder = target.parent
    if target.name.startswith("diffusion"):
        assert numbers(folder)[2] == told
        (tmp_path / "elsewhere").mkdir()
        assert numbers(Path(os.path.relpath(folder, Path.cwd())))[2] == told


def test_a_name_says_nothing_of_the_network(tmp_path: Path) -> None:
    model = make_tiny(16)
    save_file(to_layout(model, "taesd-diffusers"), tmp_path / "taesd3.safetensors")
    save_file(to_layout(model, "taesd-diffusers"), tmp_path / "plain.safetensors")
    named, plain = (load_model(tmp_path / f"{name}.safetensors").model for name in ("taesd3", "plain"))
    z = torch.randn(1, 16, 4, 4)
    assert torch.equal(named.decode(z)[0], plain.decode(z)[0])  # pyright: ignore


def test_names_that_contradict_each_other_and_an_origin_that_counts_more(tmp_path: Path) -> None:
    model = make_tiny()
    mixed = [write_pair(tmp_path, "taesd", model)[0], write_pair(tmp_path, "taesdxl", model)[1]]
    assert numbers(mixed) == (1.0, 0.0, None)
    assert numbers(mixed, latent_format="sd") == (0.18215, 0.0, "sd")
    folder = tmp_path / "taesd"
    folder.mkdir()
    save_file(to_layout(model, "taesd-diffusers"), folder / "diffusion_pytorch_model.safetensors")
    config: dict[str, Any] = {"latent_channels": 4, "scaling_factor": 1.0, "_name_or_path": "madebyollin/taesdxl"}
    (folder / "config.json").write_text(json.dumps(config))
    assert numbers(folder) == (0.13025, 0.0, "sdxl")
    # Other numbers than 1 and 0 are told, and count more than any name.
    (folder / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5, "shift_factor": 0.25}))
    assert numbers(folder) == (0.5, 0.25, None)
    assert numbers(folder, latent_format="sd") == (0.18215, 0.0, "sd")


def test_the_option(tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_tiny(16)
    pair = write_pair(tmp_path / "pair", "taesd3", model)
    assert numbers(pair, latent_format="flux") == (0.3611, 0.1159, "flux")  # who says it knows better than a name
    assert numbers(pair, latent_format="raw") == (1.0, 0.0, "raw")
    for wanted in ("sdxl", "flux9", ""):
        with pytest.raises(
            InputError, match="latent_format: expected one of sd3, flux, raw for latents of 16 channels"
        ):
            load_model(pair, latent_format=wanted)
    vaes = ["--vae", pair[0], "--vae", pair[1], "--dtype", "float32", "--device", "cpu", "--quiet"]
    out = tmp_path / "z.latent"
    assert main(["encode", str(picture), "-o", str(out), *vaes, "--latent-format", "flux"]) == 0
    wanted = own_latent(model, picture) / 0.3611 + 0.1159
    torch.testing.assert_close(read_latent(out), wanted, rtol=0, atol=1e-5)
    assert main(["info", *pair, "--latent-format", "flux", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["scale and shift"] == "0.3611 and 0.1159, of Flux.1 and relatives"
    assert main(["encode", str(picture), "-o", str(out), *vaes, "--latent-format", "sdxl"]) == 2
    assert "expected one of sd3, flux, raw" in capsys.readouterr().err


def test_where_nobody_tells(
    tmp_path: Path, picture: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = make_tiny()
    pair = write_pair(tmp_path / "pair", "mine", model)
    with caplog.at_level(logging.WARNING):
        load_vae(pair, device="cpu", dtype="float32")
    assert [NOT_TOLD in message for message in said(caplog)] == [True]
    assert "--latent-format): sd, sdxl, raw" in said(caplog)[0]
    out, back = tmp_path / "z.safetensors", tmp_path / "b.png"
    vaes = ["--vae", pair[0], "--vae", pair[1], "--dtype", "float32", "--device", "cpu"]
    caplog.clear()
    assert main(["encode", str(picture), "-o", str(out), *vaes, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["files"]
    assert row["notes"] == ["not raw latents, and not marked as such: say --latent-format"]
    assert [NOT_TOLD in message for message in said(caplog)] == [True]
    assert load_file(out).keys() == {"latent_tensor"}
    z = own_latent(model, picture)
    torch.testing.assert_close(read_latent(out), z, rtol=0, atol=1e-6)  # not divided by 0.18215, as old files are
    assert main(["decode", str(out), "-o", str(back), *vaes, "--quiet"]) == 0
    wanted = ((model.decode(z)[0] + 1) / 2).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(read_image(back)[0], wanted, rtol=0, atol=1 / 255)  # 8 bits
    told = [*vaes, "--latent-format", "sd", "--json"]
    assert main(["decode", str(out), "-o", str(back), *told]) == 0
    (row,) = json.loads(capsys.readouterr().out)["files"]
    assert row["notes"] == ["these latents are not raw but a tiny VAE's own: encode again with --latent-format"]
    facts = describe_vae(pair)
    assert facts["scale and shift"] == "not known"
    assert "scale and shift, taken as 1 and 0" in str(facts["not told by the weights"])


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_convert_to_comfyui_s_layout_writes_scale_and_shift(dtype: str | None, tmp_path: Path) -> None:
    model = make_tiny(16)
    pair = write_pair(tmp_path / "pair", "taef1", model)
    target = tmp_path / "whole.safetensors"
    _, notes = convert_vae(pair, target, "comfyui", dtype)
    assert notes == []
    stored = load_file(target)
    # ComfyUI's TAESD has them as parameters, 1 and 0 unless the file holds others.
    assert (float(stored["vae_scale"]), float(stored["vae_shift"])) == (pytest.approx(0.3611), pytest.approx(0.1159))
    assert stored["vae_scale"].dtype == torch.float32
    assert stored["vae_scale"].shape == ()
    assert numbers(target) == (0.3611, 0.1159, "flux")  # the header keeps what float32 rounds
    _, notes = convert_vae(write_pair(tmp_path / "pair", "mine", model), target, "comfyui", dtype)
    assert notes == ["written without scale and shift, which the source does not tell: say --latent-format"]
    assert "vae_scale" not in load_file(target)
    _, notes = convert_vae(pair, target, "comfyui", dtype, "sd3")
    assert notes == []
    assert numbers(target) == (1.5305, 0.0609, "sd3")


def test_a_taesd_folder_of_diffusers(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    ours = make_tiny(16).config
    halves = [f"{half}_block_out_channels" for half in ("encoder", "decoder")]
    names = ("latent_channels", "num_encoder_blocks", "num_decoder_blocks", *halves)
    theirs = diffusers.AutoencoderTiny(**{name: ours[name] for name in names})
    theirs.save_pretrained(tmp_path / "taesd3")
    assert numbers(tmp_path / "taesd3") == (1.5305, 0.0609, "sd3")
    written, notes = convert_vae([str(tmp_path / "taesd3")], tmp_path / "mine", "diffusers")
    fields = json.loads(written[1].read_text())
    assert (fields["scaling_factor"], fields["shift_factor"]) == (1.0, 0.0)  # as all published ones have it
    assert notes == []
    assert numbers(tmp_path / "mine") == (1.5305, 0.0609, "sd3")
    convert_vae(write_pair(tmp_path / "pair", "taesd3", make_tiny(16)), tmp_path / "third", "diffusers")
    fields = json.loads((tmp_path / "third" / "config.json").read_text())
    assert (fields["scaling_factor"], fields["shift_factor"]) == (1.0, 0.0)


def test_what_a_file_of_ours_says_counts_more_than_its_name(tmp_path: Path) -> None:
    path = tmp_path / "taesd.safetensors"
    model = make_tiny()
    save(model, path)  # 1 and 0 are the arguments' defaults: nobody said anything
    assert numbers(path) == (1.0, 0.0, None)
    save(load_model(path, latent_format="sdxl").model, path)
    assert numbers(path) == (0.13025, 0.0, "sdxl")
    with safe_open(path, framework="pt") as file:
        told = {name: file.metadata()[name] for name in ("latent_format", "vae_scale", "vae_shift")}
    assert told == {"latent_format": "sdxl", "vae_scale": "0.13025", "vae_shift": "0.0"}
    save(make_tiny(scaling_factor=0.7, shift_factor=0.1), path)
    assert numbers(path) == (0.7, 0.1, None)
    assert describe_vae([str(path)])["scale and shift"] == "0.7 and 0.1, from the file"


def test_distilled_models_know_their_scale(small_file: Path) -> None:
    options: dict[str, Any] = {"teacher": str(small_file), "width": 4, "blocks": 1}
    told = [(0.18215, "sd"), (1.0, "raw"), (0.4, None)]
    for scale, name in told:
        model: nn.Module = TinyDistillation(**options, scaling_factor=scale).model
        assert model.latent_format == name


def test_full_vaes_keep_raw_latents_and_say_whose(small_file: Path, tmp_path: Path) -> None:
    plain, told = (load_model(small_file, latent_format=name) for name in (None, "sdxl"))
    z = torch.randn(1, 4, 4, 4)
    assert torch.equal(plain.model.decode(z), told.model.decode(z))  # pyright: ignore
    convert_vae([str(small_file)], tmp_path / "vae", "diffusers", None, "sdxl")
    fields = json.loads((tmp_path / "vae" / "config.json").read_text())
    assert (fields["scaling_factor"], fields["shift_factor"]) == (0.13025, 0.0)
    assert describe_vae([str(small_file)], "sdxl")["scale and shift"] == "0.13025 and 0.0, as told"
