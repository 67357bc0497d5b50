"""Wan 2.1 as the host's own classes have it: read, and exact on frames and clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact_vae.tests.exactness import assert_exact
from exact_vae.tests.families.table import random_model
from exact_vae.tests.families.test_wan import ROW, noise
from exact_vae.vae_model.exact.layer import UnsupportedModule
from exact_vae.vae_model.families.table import decoder_of
from exact_vae.vae_model.families.wan.layers import CausalConv3d
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("no_gradients")


@pytest.fixture
def model() -> Any:
    return random_model(ROW)


class HostWan(nn.Module):
    """The host's model: its convolutions pad frames by themselves and say so, tensors have an axis of frames."""

    def __init__(self, ours: Any, new: bool) -> None:
        super().__init__()
        self.ours = [ours]
        copy: Any = random_model(ROW)
        copy.load_state_dict(ours.state_dict())
        for layer in copy.modules():
            if isinstance(layer, CausalConv3d):
                layer: Any
                frames, side = layer.kernel_size[0] - 1, layer.padding[1]
                layer._padding = frames if new else (side, side, side, side, frames, 0)
                layer.padding = layer.padding if new else (0, 0, 0)
        self.encoder, self.conv1, self.conv2, self.decoder = copy.encoder, copy.conv1, copy.conv2, copy.decoder

    def decode(self, z: Tensor) -> Tensor:
        return self.ours[0].decode(z)

    def encode(self, x: Tensor) -> Tensor:
        return self.ours[0].encode(x)


HostWan.__name__ = "WanVAE"


def host_vae(host: Any, model: Any) -> Any:
    vae = host.make_vae()
    vae.take_model(HostWan(model, host.new), torch.float32, ROW.config)
    vae.latent_dim, vae.upscale_ratio = 3, (lambda frames: max(0, 4 * frames - 3), 8, 8)
    vae.downscale_ratio = (lambda frames: max(0, (frames + 3) // 4), 8, 8)
    return vae


def test_the_hosts_model_is_read_and_its_shapes_are_kept(stub_host: Any, model: Any) -> None:
    from exact_vae.model_management.exact_vae import make_exact

    vae = host_vae(stub_host, model)
    made, z, pixels = make_exact(vae), noise(2, 16, 1, 5, 3), torch.rand(1, 45, 33, 3)
    pairs = [(vae.decode(z), lambda: made.decode(z)), (vae.encode(pixels), lambda: made.encode(pixels))]
    pairs += [(pairs[0][0], lambda: made.decode_tiled(z, 4, 4, 1)), (pairs[1][0], lambda: made.encode_tiled(pixels))]
    assert (pairs[0][0].shape, pairs[1][0].shape) == ((2, 1, 40, 24, 3), (1, 16, 1, 5, 4))
    stub_host.forget()
    for expected, call in pairs:
        actual = call()
        assert_exact(actual, expected)
        assert made.last_report.exact
    assert stub_host.calls == []  # none of the host's own methods ran
    asked = made.memory_used_decode(z.shape, torch.float32)
    assert 0 < asked < vars(vae)["memory_used_decode"](z.shape, torch.float32)


def test_the_hosts_clips_are_exact(stub_host: Any, model: Any) -> None:
    from exact_vae.model_management.exact_vae import make_exact

    vae = host_vae(stub_host, model)
    made, z, pixels = make_exact(vae), noise(1, 16, 2, 4, 3), torch.rand(5, 37, 30, 3)
    images, latents = vae.decode(z), vae.encode(pixels)
    assert (images.shape, latents.shape) == ((1, 5, 32, 24, 3), (1, 16, 2, 4, 3))
    stub_host.forget()
    for expected, call in (
        (images, lambda: made.decode(z)),
        (images, lambda: made.decode_tiled(z, 4, 4, 1, tile_t=2, overlap_t=1)),
        (images.movedim(-1, 1), lambda: made.decode_tiled_3d(z)),
        (latents, lambda: made.encode(pixels)),
        (latents, lambda: made.encode_tiled(pixels)),
        (latents, lambda: made.encode(pixels[None])),
        (latents, lambda: made.encode_tiled_3d(pixels[None, :, 2:34, 3:27].movedim(-1, 1))),
    ):
        assert_exact(call(), expected)
        assert (made.last_report.exact, made.last_report.reason) == (True, None)
    assert stub_host.calls == []  # none of the host's own methods ran
    asked = made.memory_used_decode(z.shape, torch.float32)
    assert 0 < asked < vars(vae)["memory_used_decode"](z.shape, torch.float32)


def test_a_batch_is_of_images_where_the_host_says_so(stub_host: Any, model: Any) -> None:
    from exact_vae.model_management.exact_vae import make_exact

    made, pixels = make_exact(host_vae(stub_host, model)), torch.rand(3, 32, 32, 3)
    made.not_video = True
    assert made.encode(pixels).shape == (3, 16, 1, 4, 4)
    assert made.last_report.exact
    made.not_video = False
    assert made.encode(pixels).shape == (1, 16, 1, 4, 4)  # of three frames one counts, as the host has it


@pytest.mark.parametrize(
    ("where", "change", "text"),
    [
        ("decoder.middle.1.norm", {"channel_first": False}, "without bias"),
        ("decoder.conv1", {"padding_mode": "circular"}, r"^conv1: expected a causal convolution of 3 with zeros"),
        ("decoder.upsamples.2.residual.6", {"_padding": (1, 1, 1, 1, 1, 0)}, r"^upsamples\.2\.residual\.6: expected"),
        ("conv2", {"stride": (2, 1, 1)}, "^conv2: expected a causal convolution of 1"),
        ("decoder.upsamples.3.resample.1", {"padding_mode": "circular"}, "expected zeros at the borders, got circular"),
        ("decoder.upsamples.3.resample.0", {"mode": "bilinear"}, r"^upsamples\.3: expected nearest x2"),
        ("decoder.middle.0", {"extra": nn.Identity()}, r"^middle\.0: expected residual, shortcut, got also extra"),
        ("decoder", {"head": nn.Sequential(nn.SiLU())}, "^head: expected RMS_norm, SiLU, CausalConv3d, got SiLU"),
        ("decoder", {"middle": nn.Sequential(nn.Identity())}, r"^middle\.0: expected one of ResidualBlock"),
        ("", {"decoder": nn.Identity()}, "^Identity: expected all parts of a coder"),
    ],
)
def test_what_is_not_known_is_refused_by_name(model: Any, where: str, change: dict[str, Any], text: str) -> None:
    host: Any = HostWan(model, new=False)
    for name, value in change.items():
        setattr(host.get_submodule(where), name, value)
    with pytest.raises(UnsupportedModule, match=text):
        decoder_of(host)
