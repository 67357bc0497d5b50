"""TAEF2 from Load VAE (ExactVAE): the latents of Flux.2's workflows, 128 channels of 16 pixels a cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import NODE_CLASS_MAPPINGS
from exact_vae.model_management.loader import load_vae
from exact_vae.tests.stub_host.tiny import DecoderFlux2, EncoderFlux2, decoder_layers, encoder_layers
from exact_vae.vae_model.families.table import decoder_of
from safetensors.torch import save_file
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("no_gradients", "one_thread")
Host = Any
Z = torch.randn(2, 128, 4, 5, generator=torch.Generator().manual_seed(1)) + torch.linspace(-2, 2, 5)
PIXELS = torch.rand(2, 75, 90, 3, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def coders() -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder as the host has them, random."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return EncoderFlux2(*encoder_layers(32, True)).eval(), DecoderFlux2(*decoder_layers(32, True)).eval()


@pytest.fixture
def files(tmp_path: Path, coders: tuple[nn.Module, nn.Module]) -> dict[str, Path]:
    """The pair in models/vae_approx."""
    paths = {f"taef2_{half}.safetensors": tmp_path / f"taef2_{half}.safetensors" for half in ("encoder", "decoder")}
    for path, coder in zip(paths.values(), coders, strict=True):
        save_file(coder.state_dict(), path)
    return paths


def load(host: Host, files: dict[str, Path]) -> Any:
    host.files = {"vae": {}, "vae_approx": files}
    return NODE_CLASS_MAPPINGS["ExactVAELoader"]().load_vae("taef2", "float32")[0]


def image_of(decoder: nn.Module, z: Tensor) -> Tensor:
    """0..1, as the host finishes it."""
    return decoder(z).clamp(0, 1).movedim(1, -1)


def assert_same(found: Tensor, expected: Tensor) -> None:
    spread = float(expected.max() - expected.min())
    assert spread > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, spread))


@pytest.mark.parametrize("method", ["exact", "untiled", "blend"])
def test_decodes_as_the_core_s(stub_host: Host, files: Any, coders: tuple[nn.Module, nn.Module], method: str) -> None:
    vae = load(stub_host, files)
    assert (vae.latent_channels, vae.upscale_ratio, vae.spacial_compression_decode()) == (128, 16, 16)
    assert_same(vae.decode(Z, method), image_of(coders[1], Z))
    assert vae.last_report.method == method


@pytest.mark.parametrize("method", ["exact", "untiled", "blend"])
def test_encodes_as_the_core_s(stub_host: Host, files: Any, coders: tuple[nn.Module, nn.Module], method: str) -> None:
    vae = load(stub_host, files)
    whole = PIXELS[:, 5:69, 5:85]  # the middle of whole cells
    found = vae.encode(PIXELS, method)
    assert found.shape == (2, 128, 4, 5)
    assert_same(found, coders[0](whole.movedim(-1, 1)))
    assert (vae.downscale_ratio, vae.last_report.method) == (16, method)


def test_nodes_and_estimates_count_in_its_cells(stub_host: Host, files: Any, coders: Any) -> None:
    vae = load(stub_host, files)
    output = NODE_CLASS_MAPPINGS["ExactVAEDecodeTiled"]().decode({"samples": Z}, vae, 512, 64, 64, 8)
    assert_same(output["result"][0], image_of(coders[1], Z))
    text = NODE_CLASS_MAPPINGS["ExactVAEPlan"]().plan(vae, 512, 512, "decode", 0.5)["result"][0]
    program = decoder_of(vae.first_stage_model).program
    plan = vae.host.make_plan(program, (1, 128, 32, 32), torch.float32, vae.device, 2**29)  # in cells of 16 pixels
    assert text.endswith(plan.table())
    sizes = [vae.memory_used_decode((1, 128, 32, 32), torch.float32), load_library(files).memory_used_decode]
    assert sizes[0] == sizes[1]((1, 32, 64, 64), torch.float32)


def test_the_model_loaded_once_more_packs_too(new_host: Host, files: Any, coders: Any) -> None:
    """The host does so for another device, and puts the model into a copy of the VAE."""
    vae = load(new_host, files)
    function, arguments = vae.patcher.cached_patcher_init
    vae.patcher = function(*arguments)
    vae.first_stage_model = vae.patcher.model
    assert_same(vae.decode(Z), image_of(coders[1], Z))


def load_library(files: dict[str, Path], **options: Any) -> Any:
    paths = tuple(str(path) for path in files.values())
    return load_vae(paths, dtype="float32", **options)


def test_the_library_keeps_the_network_s_own_cells(stub_host: Host, files: Any, coders: Any) -> None:
    own, packed = load_library(files), load_library(files, pack_flux2=True)
    assert (own.latent_channels, own.upscale_ratio) == (32, 8)
    assert torch.equal(own.decode(nn.functional.pixel_shuffle(Z, 2)), packed.decode(Z))


def test_other_vaes_have_no_squares(stub_host: Host, small_file: Path) -> None:
    vae = load_vae(str(small_file), pack_flux2=True)
    assert (vae.latent_channels, vae.upscale_ratio) == (4, 8)
