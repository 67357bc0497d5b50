"""What VAEs return are plain tensors without gradient, to be trained on; in inference mode they are what it makes.

"Inference tensors cannot be saved for backward" is what PyTorch says to whoever trains on another kind.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import VAE, load_vae
from exact_vae.model_management.exact_vae import make_exact
from exact_vae.tests.families.table import ROWS, hints, random_model
from exact_vae.vae_model.checkpoint.save import to_layout
from exact_vae.vae_model.evaluation.evaluate import reconstruct
from exact_vae.vae_model.files.latents import read_latent, write_latent
from exact_vae.vae_model.runs.run import plain_output
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = pytest.mark.parametrize("method", ["exact", "untiled", "blend"])


def family_vae(name: str) -> VAE:
    row = ROWS[name]
    state = to_layout(random_model(row), "taesd-diffusers" if row.family == "tiny" else row.layouts[0])
    return load_vae(state, config=hints(row.config), device="cpu", dtype="float32", latent_format="raw")


def train_on(x: Tensor) -> None:
    """A step of a network whose input is `x`, then of one that changes it in place."""
    assert not x.is_inference()
    assert not x.requires_grad
    assert x.grad_fn is None
    layer = nn.Linear(x.shape[-1], 2)
    layer(x).square().sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.bias.grad, 2 * layer(x).flatten(0, -2).sum(0))
    x.mul_(layer.weight[0, 0])  # views that were made in inference mode refuse this
    x.sum().backward()


def every_way_in(vae: Any, z: Tensor, x: Tensor, method: str) -> dict[str, Callable[[], Tensor]]:
    return {
        "decode": lambda: vae.decode(z, method, tile_size=32),
        "encode": lambda: vae.encode(x, method, tile_size=32),
        "decode_tiled": lambda: vae.decode_tiled(z, 4, 4, 1, method=method),
        "encode_tiled": lambda: vae.encode_tiled(x, 32, 32, 8, method=method),
        "decode_tiled_": lambda: vae.decode_tiled_(z, 4, 4, 1),
        "encode_tiled_": lambda: vae.encode_tiled_(x.movedim(-1, 1), 32, 32, 8),
        "decode_tiled_3d": lambda: vae.decode_tiled_3d(z[:, :, None]),
        "encode_tiled_3d": lambda: vae.encode_tiled_3d(x.movedim(-1, 1)[:, :, None]),
        "vae_encode_crop_pixels": lambda: vae.vae_encode_crop_pixels(x).clone(),
        "reconstruct": lambda: reconstruct(vae, x.movedim(-1, 1) * 2 - 1),
    }


@METHODS
@pytest.mark.parametrize("family", ["SD1, SD2, SDXL", "Flux.2", "VQ-f4", "Wan 2.1, Qwen-Image", "TAEF2"])
def test_every_result_can_be_trained_on(family: str, method: str) -> None:
    vae, row = family_vae(family), ROWS[family]
    z = torch.randn(1, row.channels, 4, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    x = torch.rand(1, 4 * row.factor, 6 * row.factor, 3, generator=torch.Generator().manual_seed(2))
    for make in every_way_in(vae, z, x, method).values():
        train_on(make())
    assert z.grad is None


def test_the_model_itself_can_be_trained_after_a_run(small_vae: VAE) -> None:
    image = small_vae.decode(small_vae.encode(torch.rand(1, 32, 24, 3)), memory="12MiB")
    model: Any = small_vae.first_stage_model.requires_grad_(True)
    moments, _ = model.encode(image.movedim(-1, 1) * 2 - 1, unregularized=True)
    (model.decode(moments[:, :4]) - image.movedim(-1, 1)).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


@METHODS
def test_in_inference_mode_results_are_what_it_makes(small_vae: VAE, method: str) -> None:
    z, x = torch.randn(1, 4, 3, 4), torch.rand(1, 24, 32, 3)
    plain = [small_vae.decode(z, method), small_vae.encode(x, method)]
    with torch.inference_mode():
        inside = [small_vae.decode(z, method), small_vae.encode(x, method)]
    assert all(tensor.is_inference() for tensor in inside)
    assert all(map(torch.equal, plain, inside))
    z = inside[1]  # what another program made in inference mode goes in, and plain tensors come out
    train_on(small_vae.decode(z, method))
    train_on(small_vae.encode(inside[0], method))


@pytest.mark.parametrize("kind", ["kl", "kl_quant", "taesd", "taesd_classes"])
def test_a_host_s_vae_made_exact(stub_host: Any, kind: str) -> None:
    vae = make_exact(stub_host.make_vae(kind))
    z, x = torch.randn(1, vae.latent_channels, 4, 6), torch.rand(1, 32, 48, 3)
    for make in (
        lambda: vae.decode(z),
        lambda: vae.encode(x),
        lambda: vae.decode_tiled(z, 4, 4, 1),
        lambda: vae.encode_tiled(x, tile_x=32, tile_y=32, overlap=8),
        lambda: vae.decode_tiled_(z, 4, 4, 1),
        lambda: vae.encode_tiled_(x.movedim(-1, 1)),
    ):
        train_on(make())
        assert vae.last_report.exact


def test_a_vae_of_ours_in_the_host(stub_host: Any, small_file: Path) -> None:
    vae = load_vae(small_file, device="cpu", dtype="float32")
    assert vae.patcher is not None
    train_on(vae.decode(torch.randn(1, 4, 4, 6)))
    train_on(vae.encode(torch.rand(1, 32, 48, 3)))


def test_latents_of_files(small_vae: VAE, tmp_path: Path) -> None:
    z = small_vae.encode(torch.rand(1, 32, 24, 3))
    write_latent(z, tmp_path / "latent.safetensors")
    train_on(read_latent(tmp_path / "latent.safetensors"))


def test_a_run_inside_is_in_inference_mode() -> None:
    """Which is what makes small operations fast."""
    with plain_output((2, 3), torch.device("cpu")) as out:
        assert torch.is_inference_mode_enabled()
        assert torch.ones(1).is_inference()
        out.fill_(1)
    assert not torch.is_inference_mode_enabled()
    train_on(out)
