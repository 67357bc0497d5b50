"""Qwen-Image 2.1 as the host's own classes have it: read; Wan 2.2, which has the same classes, is not taken for it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from exact_vae.tests.exact.test_programs_whole import run
from exact_vae.tests.exactness import assert_exact
from exact_vae.tests.families.table import ROWS, random_model
from exact_vae.tests.families.test_hunyuan_image import noise
from exact_vae.tests.families.test_qwen_image_21 import NARROW, narrow
from exact_vae.vae_model.exact.layer import UnsupportedModule
from exact_vae.vae_model.exact.schedule import uniform
from exact_vae.vae_model.families.table import FAMILIES, decoder_of, encoder_of, family_knowing
from exact_vae.vae_model.families.wan.layers import CausalConv3d
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("no_gradients", "one_thread")


class WanVAE(nn.Module):
    """The host's class; its convolutions pad frames by themselves and say so."""

    def __init__(self, ours: Any, patch_size: int = 1) -> None:
        super().__init__()
        self.ours, self.patch_size = [ours], patch_size
        tree: Any = copy.deepcopy(ours)
        for layer in tree.modules():
            if isinstance(layer, CausalConv3d):
                layer: Any
                layer._padding = 2 * (layer.kernel_size[0] // 2)
        self.encoder, self.conv1, self.conv2, self.decoder = tree.encoder, tree.conv1, tree.conv2, tree.decoder

    def decode(self, z: Tensor) -> Tensor:
        return self.ours[0].decode(z)

    def encode(self, x: Tensor) -> Tensor:
        return self.ours[0].encode(x)


@pytest.fixture
def host() -> Any:
    return WanVAE(copy.deepcopy(narrow()).double())


def test_the_hosts_model_is_read(host: Any) -> None:
    assert family_knowing(host) is FAMILIES["qwen_image_21"]
    z, x = noise(1, 6, 5, 3, dtype=torch.float64), noise(1, 4, 40, 24, dtype=torch.float64)
    assert_exact(run(decoder_of(host).program, uniform(4, 3), z), host.decode(z))
    half = encoder_of(host, 6)
    assert_exact(half.finish(run(half.program, uniform(4, 1), x)), host.encode(x))


def test_the_hosts_vae_is_made_exact(stub_host: Any) -> None:
    from exact_vae.model_management.exact_vae import make_exact

    vae = stub_host.make_vae()
    vae.take_model(WanVAE(copy.deepcopy(narrow())), torch.float32, NARROW)
    vae.latent_dim, vae.pad_channel_value, vae.output_channels = 2, 1.0, 4
    made, z = make_exact(vae), noise(2, 6, 5, 3)
    pixels = torch.rand(1, 45, 33, 4, generator=torch.Generator().manual_seed(1))
    expected = vae.decode(z), vae.encode(pixels)
    stub_host.forget()
    for found, wanted in zip((made.decode(z), made.encode(pixels)), expected, strict=True):
        assert_exact(found, wanted)
        assert made.last_report.exact
    assert stub_host.calls == []  # none of the host's own methods ran


def test_wan_2_2_is_not_taken_for_it(host: Any) -> None:
    """By patches of 2x2 pixels, or by convolutions over three frames: what has but one of these is neither."""
    patched = WanVAE(copy.deepcopy(narrow()), patch_size=2)
    conv = host.decoder.conv1
    host.decoder.conv1 = CausalConv3d(conv.in_channels, conv.out_channels)
    host.encoder.conv1 = CausalConv3d(4, 8)
    for other in (patched, host):
        assert family_knowing(other) is FAMILIES["wan"]
        with pytest.raises(UnsupportedModule, match=r"upsamples\.0: expected one of ResidualBlock, .* got Up_Residual"):
            decoder_of(other)
    assert family_knowing(WanVAE(random_model(ROWS["Wan 2.2"]), patch_size=2)) is FAMILIES["wan22"]


@pytest.mark.parametrize(
    ("where", "change", "text"),
    [
        ("decoder.upsamples.0.avg_shortcut", {"factor_t": 3}, r"^upsamples\.0\.avg_shortcut: expected DupUp3D or Avg"),
        ("decoder.upsamples.0", {"avg_shortcut": nn.Identity()}, "expected all parts of a coder"),
        (
            "decoder.upsamples.0.avg_shortcut",
            {"out_channels": 25},
            "shortcut: expected channels that fit, got 24 to 25",
        ),
        ("decoder.upsamples.1", {"extra": nn.Identity()}, r"^upsamples\.1: expected avg_shortcut, upsamples, got also"),
        ("decoder.upsamples.2.upsamples.3.resample.1", {"padding_mode": "circular"}, "expected zeros at the borders"),
    ],
)
def test_what_is_not_known_is_refused_by_name(host: Any, where: str, change: dict[str, Any], text: str) -> None:
    for name, value in change.items():
        setattr(host.get_submodule(where), name, value)
    with pytest.raises(UnsupportedModule, match=text):
        decoder_of(host)
