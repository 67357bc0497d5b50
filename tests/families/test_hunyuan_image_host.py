"""HunyuanImage 2.1 as the host's own classes have it: read, and refused by name where anything is not known."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from exact_vae.tests.exact.test_programs_whole import run
from exact_vae.tests.exactness import assert_exact
from exact_vae.tests.families.test_hunyuan_image import narrow, noise
from exact_vae.vae_model.exact.layer import UnsupportedModule
from exact_vae.vae_model.exact.schedule import uniform
from exact_vae.vae_model.families.table import FAMILIES, decoder_of, encoder_of, family_knowing
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("no_gradients", "one_thread")


class PixelUnshuffle2D(nn.Module):
    """The host's name of what upsamples."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv, self.scale = conv, 2


class PixelShuffle2D(nn.Module):
    """The host's name of what makes smaller."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv, self.ratio = conv, 2


class AutoencodingEngine(nn.Module):
    """The host's engine of many networks."""

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.encoder, self.decoder, self.regularization = ours.encoder, ours.decoder, nn.Identity()
        for level in self.encoder.down[:-1]:
            level.downsample = PixelShuffle2D(level.downsample.conv)
        for level in self.decoder.up[:-1]:
            level.upsample = PixelUnshuffle2D(level.upsample.conv)

    def encode(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor:
        raise NotImplementedError


def host_model() -> Any:
    host: Any = AutoencodingEngine(copy.deepcopy(narrow(torch.float32)).double())
    host.regularization = type("DiagonalGaussianRegularizer", (nn.Module,), {})()
    return host


def test_the_hosts_model_is_read() -> None:
    host, double = host_model(), copy.deepcopy(narrow(torch.float32)).double()
    assert family_knowing(host) is FAMILIES["hunyuan_image"]
    z, x = noise(1, 16, 5, 3, dtype=torch.float64), noise(1, 3, 20, 12, dtype=torch.float64)
    assert_exact(run(decoder_of(host).program, uniform(3, 3), z), double.decode(z))
    half = encoder_of(host, 16)
    assert_exact(half.finish(run(half.program, uniform(3, 1), x)), double.encode(x))


@pytest.mark.parametrize(
    ("where", "change", "text"),
    [
        ("decoder.up.0", {"upsample": nn.Identity()}, r"^up\.0\.upsample: expected ConvolveAndSpread or Pixel"),
        ("decoder.up.1.upsample", {"extra": nn.Identity()}, r"^up\.1\.upsample: expected conv, got also extra"),
        (
            "decoder.up.1",
            {"attn": nn.ModuleList([nn.Identity()])},
            r"^up\.1: expected no attention beside the blocks, got some",
        ),
        ("decoder", {"conv_in": nn.Conv2d(16, 120, 3, padding=1)}, "^conv_in: expected 16 channels to divide 120"),
        ("decoder", {"mid": nn.Identity()}, "^mid: expected a part block_1, got none"),
        ("", {"decoder": nn.Identity()}, "^Identity: expected all parts of a coder"),
    ],
)
def test_what_is_not_known_is_refused_by_name(where: str, change: dict[str, Any], text: str) -> None:
    host = host_model()
    for name, value in change.items():
        setattr(host.get_submodule(where), name, value)
    with pytest.raises(UnsupportedModule, match=text):
        decoder_of(host)
