"""`exact-vae convert` and what `exact-vae info` says of every family: files of other programs, notes and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae.__main__ import main
from exact_vae.tests.families.table import ROWS, hints, random_model
from exact_vae.vae_model.checkpoint.convert import convert_vae
from exact_vae.vae_model.checkpoint.describe import describe_vae
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.checkpoint.save import save
from exact_vae.vae_model.errors import InputError, VAEFileError
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("no_gradients")


def write(name: str, folder: Path, layout: str | None = None) -> Path:
    path = folder / "in.safetensors"
    save(random_model(ROWS[name]), path, layout=layout or ROWS[name].layouts[0])
    return path


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if {"diffusers"} < {*row.layouts}])
def test_there_and_back_is_byte_identical(name: str, tmp_path: Path) -> None:
    source, middle, back = write(name, tmp_path), tmp_path / "middle.safetensors", tmp_path / "back.safetensors"
    first, other = ROWS[name].layouts[:2]
    through = other if first == "diffusers" else "diffusers"
    assert convert_vae([str(source)], middle, through) == ([middle], [])
    sign = "decoder.mid_block.resnets.0.norm1." if through == "diffusers" else "decoder.stages.1.op_list.0.main."
    assert any(key.startswith(sign) for key in load_file(middle))
    convert_vae([str(middle)], back, first)
    assert back.read_bytes() == source.read_bytes()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = write("Flux.2", tmp_path), tmp_path / "new" / "out.safetensors"
    assert main(["convert", str(source), "-o", str(target), "--layout", "diffusers", "--dtype", "float16"]) == 0
    assert capsys.readouterr().out == f"{source} -> {target} (diffusers)\n"
    stored = load_file(target)
    assert stored["quant_conv.weight"].dtype == torch.float16
    assert stored["bn.num_batches_tracked"] == 1234
    assert main(["convert", str(target), "-o", str(tmp_path / "b.safetensors"), "--layout", "ldm", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    outputs = [str(tmp_path / "b.safetensors")]
    assert facts == {"command": "convert", "layout": "ldm", "outputs": outputs, "notes": []}
    assert main(["convert", str(source), "-o", str(source), "--layout", "diffusers"]) == 2
    assert "expected another file than the input" in capsys.readouterr().err
    assert main(["convert", "bundled", "-o", str(tmp_path / "bundled.safetensors"), "--layout", "diffusers"]) == 0


SCALE_NOT_TOLD = "written without scale and shift, which the source does not tell: say --latent-format"

CLASSES = {
    "SD1, SD2, SDXL": "AutoencoderKL",
    "SD3, Flux.1": "AutoencoderKL",
    "kl-f16": "AutoencoderKL",
    "Flux.2 small decoder": "AutoencoderKLFlux2",
    "VQ-f4": "VQModel",
    "VQ-f8": "VQModel",
    "TAESD3, TAEF1": "AutoencoderTiny",
}


@pytest.mark.parametrize("name", CLASSES)
def test_diffusers_loads_and_computes_the_same_from_a_folder(name: str, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    row, source = ROWS[name], write(name, tmp_path)
    written, _ = convert_vae([str(source)], tmp_path / "vae", "diffusers")
    assert [path.name for path in written] == ["diffusion_pytorch_model.safetensors", "config.json"]
    assert json.loads(written[1].read_text())["_class_name"] == CLASSES[name]
    theirs: Any = getattr(diffusers, CLASSES[name]).from_pretrained(tmp_path / "vae", low_cpu_mem_usage=False).eval()
    loaded = load_model(tmp_path / "vae")
    assert (loaded.family, loaded.config) == (row.family, row.config)
    ours: Any = loaded.model
    generator = torch.Generator().manual_seed(9)
    x = torch.rand(1, 3, 4 * row.factor, 2 * row.factor, generator=generator) * 2 - 1
    z = torch.randn(1, row.channels, 4, 2, generator=generator)
    if row.family == "tiny":
        pairs = [(ours.encode(x).latents, theirs.encode(x).latents), (ours.decode(z).sample, theirs.decode(z).sample)]
    elif row.family == "vq":
        pairs = [(ours.encode(x), theirs.encode(x).latents), (ours.decode(z), theirs.decode(z).sample)]
    else:
        unpacked = ours.unpack(z) if row.family == "flux2" else z
        moments, _ = ours.encode(x, unregularized=True)
        pairs = [(moments, theirs.encode(x).latent_dist.parameters), (ours.decode(z), theirs.decode(unpacked).sample)]
    for actual, expected in pairs:
        assert expected.std() > 0.1  # A comparison of zeros would show nothing.
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def test_what_no_weight_tells_is_kept_or_said(tmp_path: Path) -> None:
    source = write("SD1, SD2, SDXL", tmp_path)
    _, notes = convert_vae([str(source)], tmp_path / "first", "diffusers")
    assert notes == ["config.json without scaling_factor, which the source does not tell; diffusers takes 0.18215"]
    config = tmp_path / "first" / "config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"scaling_factor": 0.13025, "force_upcast": False, "latents_mean": None}))
    _, notes = convert_vae([str(tmp_path / "first")], tmp_path / "second", "diffusers")
    again = json.loads((tmp_path / "second" / "config.json").read_text())
    assert notes == []
    assert again == fields | {"scaling_factor": 0.13025, "force_upcast": False, "latents_mean": None}
    facts = describe_vae([str(tmp_path / "second")])
    assert facts["scale and shift"] == "0.13025 and 0, from config.json"
    assert facts["not told by the weights"] == "nothing that is needed"


def test_halves(tmp_path: Path) -> None:
    source = write("TAESD, TAESDXL", tmp_path, "taesd-comfyui")
    paths = [tmp_path / f"{half}.safetensors" for half in ("encoder", "decoder")]
    for path, other in zip(paths, ("decoder", "encoder"), strict=True):
        _, notes = convert_vae([str(source)], path, f"taesd-{path.stem}")
        assert notes == [f"the {other} was left out: this layout holds the other half", SCALE_NOT_TOLD]
    convert_vae([str(path) for path in paths], tmp_path / "whole.safetensors", "taesd-comfyui")
    assert (tmp_path / "whole.safetensors").read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("name", "output", "layout", "text"),
    [
        ("kl-f4", "out.ckpt", "diffusers", "expected a name ending in .safetensors, got 'out.ckpt'"),
        ("kl-f4", "folder", "ldm", "expected a name ending in .safetensors for ldm"),
        ("kl-f4", "out.safetensors", "sgm", "expected one of ldm, diffusers, diffusers-old, got 'sgm'"),
        ("Flux.2", "out.safetensors", "diffusers-old", "expected one of ldm, diffusers, got 'diffusers-old'"),
        ("TAEF2", "out.safetensors", "ldm", "expected one of taesd-diffusers"),
        ("TAEF2", "folder", "diffusers", "expected a network of TAESD's kind, got TAEF2's or TAESana's"),
        ("TAESana", "folder", "diffusers", "expected a network of TAESD's kind"),
        ("kl-f32", "folder", "diffusers", "expected as many latent channels behind the quant convolutions"),
    ],
)
def test_refusals_leave_nothing_behind(name: str, output: str, layout: str, text: str, tmp_path: Path) -> None:
    source = write(name, tmp_path)
    with pytest.raises(InputError, match=text) as error:
        convert_vae([str(source)], tmp_path / output, layout)
    assert "\n" not in str(error.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [source]
    with pytest.raises(VAEFileError):
        convert_vae([str(tmp_path / "absent.safetensors")], tmp_path / "out.safetensors", "ldm")


INFO: dict[str, tuple[str, str, str]] = {
    "SD1, SD2, SDXL": (
        "(batch, 4, height / 8, width / 8), raw mean of the posterior",
        "not known",
        "scale and shift of the diffusion model: Stable Diffusion 1 and 2 (0.18215, 0) or SDXL (0.13025, 0)",
    ),
    "SD3, Flux.1": (
        "(batch, 16, height / 8, width / 8), raw mean of the posterior",
        "not known",
        "scale and shift of the diffusion model: Stable Diffusion 3 (1.5305, 0.0609) or Flux.1 and relatives "
        "(0.3611, 0.1159)",
    ),
    "Flux.2": (
        "(batch, 128, height / 16, width / 16), squares of 2 x 2 in channels, normalised by the file's statistics",
        "1 and 0, of Flux.2",
        "nothing that is needed",
    ),
    "x4-upscaler": (
        "(batch, 4, height / 4, width / 4), raw mean of the posterior",
        "0.08333 and 0, of Stable Diffusion x4-upscaler",
        "nothing that is needed",
    ),
    "kl-f16": (
        "(batch, 16, height / 16, width / 16), raw mean of the posterior",
        "not known",
        "scale and shift of the diffusion model",
    ),
    "Wan 2.1, Qwen-Image": (
        "(batch, 16, (frames - 1) / 4 + 1, height / 8, width / 8), raw mean of the posterior",
        "per channel, means [-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, "
        "0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921], deviations [2.8184, 1.4541, 2.3275, 2.6558, 1.2196, "
        "1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916], "
        "of Wan 2.1, Qwen-Image and relatives",
        "nothing that is needed",
    ),
    "VQ-f4": (
        "(batch, 3, height / 4, width / 4), raw, before the codebook; decoding takes the nearest of its 64 vectors",
        "not known",
        "scale and shift of the diffusion model",
    ),
    "TAEF2": (
        "(batch, 32, height / 8, width / 8), raw; the network works on (latent - 0) * 1",
        "1 and 0, of TAEF2, on the normalised latents of Flux.2",
        "nothing that is needed",
    ),
}


@pytest.mark.parametrize("name", INFO)
def test_info(name: str, tmp_path: Path) -> None:
    facts = describe_vae([str(write(name, tmp_path))])
    assert (facts["latents"], facts["scale and shift"], facts["not told by the weights"]) == INFO[name]


def test_info_of_widths_and_parameters(tmp_path: Path) -> None:
    facts = describe_vae([str(write("Flux.2 small decoder", tmp_path))])
    assert facts["family"] == "Flux.2 autoencoder"
    assert facts["layout"] == "ldm"
    assert facts["widths"] == "encoder 8, 16, 32, 32; decoder 48, 48, 24, 12"
    assert facts["parameters"] == sum(p.numel() for p in random_model(ROWS["Flux.2 small decoder"]).parameters())
    assert facts["stored as"] == "float32"
    assert "engine has no rule" not in str(facts)


def test_info_says_what_it_took_for_granted(tmp_path: Path) -> None:
    path = tmp_path / "bare.pt"
    torch.save(random_model(ROWS["Flux.2"]).state_dict(), path)
    untold = describe_vae([str(path)])["not told by the weights"]
    assert untold == "groups of the norms, taken as 8; eps of the statistics, taken as 0.0001"
    assert hints(ROWS["Flux.2"].config) == {"norm_num_groups": 4}
