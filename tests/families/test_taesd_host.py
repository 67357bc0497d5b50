"""TAESD and TAEF2 as the classes of newer hosts: exact, four cells in a channel, and never past what was hooked in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact_vae import NODE_CLASS_MAPPINGS
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.model_management.exact_vae import make_exact
from exact_vae.tests.exactness import assert_exact
from exact_vae.tests.stub_host.tiny import DecoderFlux2, TinyModel
from exact_vae.vae_model.exact.layer import UnsupportedModule
from exact_vae.vae_model.families.table import decoder_of, encoder_of
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("no_gradients")
KINDS = pytest.mark.parametrize(("kind", "factor"), [("taesd", 8), ("taesd_classes", 8), ("taef2", 16)])


def latent(vae: Any, height: int = 7, width: int = 9, batch: int = 2) -> Tensor:
    z = torch.randn(batch, vae.latent_channels, height, width, generator=torch.Generator().manual_seed(height))
    return z * 4 + torch.linspace(-3, 3, width)


def pixels(height: int, width: int) -> Tensor:
    return torch.rand(2, height, width, 3, generator=torch.Generator().manual_seed(width))


@KINDS
def test_both_halves_are_exact_and_the_factor_is_the_model_s(stub_host: Any, kind: str, factor: int) -> None:
    vae = stub_host.make_vae(kind)
    made, z, x = make_exact(vae), latent(vae), pixels(48, 64)
    image, encoded = vae.decode(z), vae.encode(x)
    assert image.shape == (2, 7 * factor, 9 * factor, 3)
    stub_host.forget()
    for found in (made.decode(z), made.decode_tiled(z, 4, 4, 1), made.decode_tiled_(z).movedim(1, -1)):
        assert_exact(found, image)
        assert (made.last_report.method, made.last_report.exact) == ("exact", True)
    for found in (made.encode(x), made.encode_tiled(x, 32, 32, 8), made.encode_tiled_(x.movedim(-1, 1))):
        assert_exact(found, encoded)
        assert made.last_report.exact
    assert stub_host.calls == []
    assert made.spacial_compression_decode() == made.spacial_compression_encode() == factor
    assert (made.upscale_ratio, made.downscale_ratio) == (factor, factor)


@KINDS
def test_odd_sizes_are_cropped_to_whole_cells(stub_host: Any, kind: str, factor: int) -> None:
    """The host crops TAEF2's images to 8 and then fails on half a cell."""
    vae = stub_host.make_vae(kind)
    x = pixels(75, 90)
    top, left = 75 % factor // 2, 90 % factor // 2
    whole = x[:, top : top + 75 // factor * factor, left : left + 90 // factor * factor]
    expected = vae.encode(whole)
    assert_exact(make_exact(vae).encode(x), expected)
    inpaint = NODE_CLASS_MAPPINGS["ExactVAEEncodeForInpaint"]().encode(x, vae, torch.zeros(75, 90))["result"][0]
    assert_exact(inpaint["samples"], expected)
    assert inpaint["noise_mask"].shape[2:] == whole.shape[1:3]


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("what", ["decode", "encode"])
def test_what_packing_takes_is_in_the_plan(new_host: Any, what: str, share: float) -> None:
    vae = new_host.make_vae("taef2")
    z, x = latent(vae, 16, 16, 1), pixels(256, 256)[:1]
    made = make_exact(vae)
    expected = getattr(vae, what)(z if what == "decode" else x)
    getattr(made, what)(z if what == "decode" else x)
    budget = int(made.last_report.plan.peak_bytes * share)
    small = make_exact(vae, budget)
    with LiveTensorMeter() as meter:
        found = getattr(small, what)(z if what == "decode" else x)
    assert_exact(found, expected)
    assert small.last_report.plan.peak_bytes <= budget
    assert small.last_report.plan.peak_bytes >= meter.peak_bytes - found.nbytes
    assert small.last_report.plan.peak_bytes <= 1.15 * (meter.peak_bytes - found.nbytes) + 65536


class Renamed(DecoderFlux2):
    """Who knows what it does."""


class Other(nn.Sequential):
    """A sequence that is none."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z) * 2


@pytest.mark.parametrize("kind", [Renamed, Other])
def test_a_class_that_computes_something_else_is_refused_by_name(kind: type[nn.Sequential]) -> None:
    model = TinyModel(packed=kind is Renamed).eval()
    model.taesd_decoder = kind(*model.taesd_decoder)
    with pytest.raises(
        UnsupportedModule, match=f"^taesd_decoder: expected a plain sequence of layers, got {kind.__name__}"
    ):
        decoder_of(model)
    model.taesd_encoder = kind(*model.taesd_encoder)
    with pytest.raises(UnsupportedModule, match=r"^taesd_encoder: expected a plain sequence"):
        encoder_of(model, 4)


@KINDS
def test_what_is_hooked_around_a_sequence_is_not_passed_over(stub_host: Any, kind: str, factor: int) -> None:
    vae = stub_host.make_vae(kind)
    made, z = make_exact(vae), latent(vae, 2, 2, 1)
    plain = vae.decode(z)
    vae.first_stage_model.taesd_decoder.register_forward_hook(lambda layer, args, result: result * 0.5)
    assert_exact(made.decode(z), vae.decode(z))
    assert (made.decode(z) - plain).abs().max() > 0.01
    assert "without hooks" in made.last_report.reason
