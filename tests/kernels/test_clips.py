"""Convolutions over frames, rows and columns: every method equals PyTorch's own in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact_vae.vae_model.kernels.method import Machine, Method, Wanted
from exact_vae.vae_model.kernels.methods import Tiled, method_for, this_machine
from exact_vae.vae_model.kernels.plain import CausalConvolution
from torch import Tensor
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("no_gradients")


class Memory:
    memory_format = torch.channels_last

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def empty(self, images: int, channels: int, rows: int, width: int) -> Tensor:
        return torch.empty((images, channels, rows, width), dtype=self.dtype, memory_format=torch.channels_last)

    def scratch(self, size: int) -> Tensor:
        return torch.full((-(-size // 4),), torch.nan)  # what is read before it is written shows


def wanted(channels: tuple[int, int], width: int, rows: int, frames: int, dtype: torch.dtype, **more: Any) -> Wanted:
    values: dict[str, Any] = {"kernel": 3, "stride": 1, "pads": (1, 1), "zeros": True, "copies": True, **more}
    return Wanted(
        channels=channels, width=width, rows=rows, taps=min(3, frames), images=frames, dtype=dtype, device_type="cpu",
        channels_last=True, machine=this_machine("cpu", dtype), **values,
    )  # fmt: skip


def by(method: Method, x: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    """The whole image as one strip."""
    memory = Memory(x.dtype)
    frames, channels, height, width = x.shape
    left, right = method.columns
    shape = (frames + method.frames_before, channels, height + 2 + method.rows_below(rows), width + left + right)
    window = memory.empty(*shape).zero_()
    window[method.frames_before :, :, 1 : height + 1, left : left + width] = x
    return method.run(memory, window, method.arrange(memory, weight, False), bias, 0, rows, False)


def truth(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    clip = functional.pad(x.double().transpose(0, 1)[None], (1, 1, 1, 1, weight.shape[2] - 1, 0))
    return functional.conv3d(clip, weight.double(), None if bias is None else bias.double())[0].transpose(0, 1)


def data(channels: tuple[int, int], frames: int, height: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(frames + height)
    x = torch.randn(frames, channels[0], height, width, generator=generator).to(dtype)
    weight = (
        torch.randn(channels[1], channels[0], min(3, frames), 3, 3, generator=generator) / (27 * channels[0]) ** 0.5
    )
    return x, weight.to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frames", [2, 3, 5])
@pytest.mark.parametrize(("channels", "height", "width"), [((96, 128), 8, 48), ((128, 96), 5, 51), ((192, 96), 1, 64)])
def test_tiles(channels: tuple[int, int], height: int, width: int, frames: int, bias: bool) -> None:
    x, weight = data(channels, frames, height, width, torch.float32)
    shift = torch.linspace(-1, 1, channels[1]) if bias else None
    method = method_for("convolve", wanted(channels, width, height, frames, torch.float32))
    if this_machine("cpu", torch.float32).tiles is None:
        pytest.skip("no compiler: there are no kernels of tiles")
    assert isinstance(method, Tiled)
    expected = truth(x, weight, shift)
    spread = float(expected.max() - expected.min())
    assert (by(method, x, weight, shift, height) - expected).abs().max() <= 5e-6 * spread


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frames", [2, 3, 6])
def test_plain(frames: int, dtype: torch.dtype) -> None:
    x, weight = data((5, 7), frames, 4, 6, dtype)
    shift = torch.linspace(-1, 1, 7).to(dtype)
    method = method_for("convolve", wanted((5, 7), 6, 0, frames, dtype))
    assert isinstance(method, CausalConvolution)
    expected = truth(x, weight, shift)
    made = by(method, x, weight, shift, 4)
    assert made.dtype == dtype
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6}.get(dtype, torch.finfo(dtype).eps)  # rounded once
    assert (made - expected).abs().max() <= tolerance * float(expected.abs().max())


def test_pictures_take_the_method_of_pictures() -> None:
    without = wanted((96, 96), 48, 8, 1, torch.float32)._replace(machine=Machine())
    assert not isinstance(method_for("convolve", without), CausalConvolution)
    assert isinstance(method_for("convolve", without._replace(taps=2, images=2)), CausalConvolution)
