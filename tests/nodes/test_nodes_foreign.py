"""The nodes with VAEs of which nothing is known but the host's method signatures: called as the core calls them."""

from typing import Any

import pytest
import torch
from exact_vae import NODE_CLASS_MAPPINGS
from torch import Tensor


def node(name: str) -> Any:
    return NODE_CLASS_MAPPINGS[name]()


class HostVAE:
    """A VAE with the method signatures of ComfyUI's own; it records its arguments and computes nothing."""

    def __init__(self, factor: int = 8, frames: int = 0) -> None:
        self.factor, self.frames = factor, frames
        self.calls: list[dict[str, Any]] = []

    def decode(self, samples_in: Tensor, vae_options: Any = None) -> Tensor:
        self.calls.append({"samples": samples_in, "options": vae_options})
        return self._images()

    def encode(self, pixel_samples: Tensor) -> Tensor:
        self.calls.append({"pixels": pixel_samples})
        return torch.zeros(1, 16, 4, 4)

    def decode_tiled(
        self, samples: Tensor, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None
    ) -> Tensor:
        self.calls.append({"samples": samples, "tile_x": tile_x, "tile_y": tile_y, "overlap": overlap})
        self.times = (tile_t, overlap_t)
        return self._images()

    def encode_tiled(
        self, pixel_samples: Tensor, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None
    ) -> Tensor:
        self.calls.append({"pixels": pixel_samples, "tile_x": tile_x, "tile_y": tile_y, "overlap": overlap})
        self.times = (tile_t, overlap_t)
        return torch.zeros(1, 16, 4, 4)

    def spacial_compression_decode(self) -> int:
        return self.factor

    def spacial_compression_encode(self) -> int:
        return self.factor

    def temporal_compression_decode(self) -> int | None:
        return 4 if self.frames else None

    def _images(self) -> Tensor:
        shape = (2, self.frames, 8, 8, 3) if self.frames else (2, 8, 8, 3)
        return torch.arange(torch.Size(shape).numel()).float().reshape(shape)


@pytest.mark.parametrize(
    ("size", "overlap", "expected"), [(64, 8, (16, 2)), (8, 4, (2, 1)), (16, 64, (4, 2)), (8, 8, (2, 1))]
)
def test_frames_reach_a_host_s_video_vae_in_latent_frames(size: int, overlap: int, expected: tuple[int, int]) -> None:
    """decode_tiled counts latent frames (four to one), at least two and one shared; encode_tiled counts frames."""
    host = HostVAE(frames=3)
    node("ExactVAEDecodeTiled").decode(SAMPLES, host, 512, 64, size, overlap)
    assert host.times == expected
    node("ExactVAEEncodeTiled").encode(PIXELS, host, 512, 64, size, overlap)
    assert host.times == (size, overlap)
    image_host = HostVAE()
    node("ExactVAEDecodeTiled").decode(SAMPLES, image_host, 512, 64, size, overlap)
    assert image_host.times == (None, None)


SAMPLES = {"samples": torch.zeros(1, 4, 2, 2)}
PIXELS = torch.zeros(1, 16, 16, 4)


def test_a_host_vae_is_called_as_the_core_calls_it() -> None:
    host = HostVAE()
    node("ExactVAEDecode").decode(SAMPLES, host)
    node("ExactVAEEncode").encode(PIXELS, host)
    assert host.calls[0] == {"samples": SAMPLES["samples"], "options": None}
    assert host.calls[1]["pixels"].shape == (1, 16, 16, 3)


@pytest.mark.parametrize("method", ["exact", "blend"])
def test_a_host_vae_is_not_asked_for_methods_it_has_not(method: str) -> None:
    """Its methods take no such argument; it runs the tiles it knows."""
    host = HostVAE()
    node("ExactVAEDecodeTiled").decode(SAMPLES, host, 512, 64, 64, 8, method)
    node("ExactVAEEncodeTiled").encode(PIXELS, host, 512, 64, 64, 8, method)
    assert [call["tile_x"] for call in host.calls] == [64, 512]


@pytest.mark.parametrize("factor", [4, 8, 16, 32])
@pytest.mark.parametrize(
    ("tile", "overlap", "shared"), [(512, 64, 64), (256, 64, 64), (256, 96, 64), (64, 512, 16), (96, 0, 0)]
)
def test_tiles_reach_a_host_vae_in_its_own_units(factor: int, tile: int, overlap: int, shared: int) -> None:
    """decode_tiled counts latent cells, encode_tiled pixels; the overlap is at most a quarter of the tile."""
    host = HostVAE(factor)
    node("ExactVAEDecodeTiled").decode(SAMPLES, host, tile, overlap)
    node("ExactVAEEncodeTiled").encode(PIXELS, host, tile, overlap)
    decoding, encoding = ({key: call[key] for key in ("tile_x", "tile_y", "overlap")} for call in host.calls)
    assert decoding == {"tile_x": tile // factor, "tile_y": tile // factor, "overlap": shared // factor}
    assert encoding == {"tile_x": tile, "tile_y": tile, "overlap": shared}
    assert host.calls[1]["pixels"].shape == (1, 16, 16, 3)


class Nested:
    """A LATENT of several tensors, as newer hosts have it."""

    is_nested = True

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def unbind(self) -> tuple[Tensor, ...]:
        return self.tensors


@pytest.mark.parametrize("name", ["ExactVAEDecode", "ExactVAEDecodeTiled"])
def test_of_nested_latents_the_first_is_decoded(name: str) -> None:
    host, first = HostVAE(), torch.ones(1, 4, 2, 2)
    node(name).decode({"samples": Nested(first, torch.zeros(1, 8, 5))}, host)
    assert host.calls[0]["samples"] is first


@pytest.mark.parametrize("name", ["ExactVAEDecode", "ExactVAEDecodeTiled"])
def test_frames_of_a_video_become_a_batch_in_order(name: str) -> None:
    images = node(name).decode(SAMPLES, HostVAE(frames=3))["result"][0]
    assert images.shape == (6, 8, 8, 3)
    assert torch.equal(images.flatten(), torch.arange(6 * 8 * 8 * 3).float())
