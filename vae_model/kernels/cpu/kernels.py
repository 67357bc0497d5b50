"""The functions of tiles.c, compiled and tried out once in a process."""

from __future__ import annotations

from ctypes import CDLL
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from ..method import Machine
from .blocks import declare, plan_blocks
from .compiler import load
from .filters import CONVOLVE, UPSAMPLE_EVEN, UPSAMPLE_ODD, Filters

_ROWS, _WIDTH = 6, 9
"""Of the trial's source: it ends with parts of tiles."""


@cache
def kernels() -> CDLL | None:
    """Those functions; None where there is no compiler or they give wrong results."""
    return load(Path(__file__).with_name("tiles.c"), declare, is_right)


@torch.no_grad()
def is_right(library: CDLL) -> bool:
    """Whether a small convolution and upsamples that begin with either row come out right."""
    channels = 2 * library.tile_panel()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, _ROWS, _WIDTH, generator=generator)
    weight, bias = torch.randn(channels, channels, 3, 3, generator=generator), torch.arange(1.0, channels + 1)
    large = functional.interpolate(x, scale_factor=2.0, mode="nearest")
    upsample = UPSAMPLE_EVEN, UPSAMPLE_ODD
    for filters, source, odd in (((CONVOLVE,), x, False), (upsample, large, False), (upsample, large, True)):
        expected = functional.conv2d(source.double(), weight.double(), bias.double(), padding=1)
        made = _convolve(library, filters, x, weight, bias, odd)
        if not bool(((made - expected).abs() < 1e-4 * expected.abs().max()).all()):
            return False
    return True


def _convolve(
    library: CDLL, filters: tuple[Filters, ...], x: Tensor, weight: Tensor, bias: Tensor, odd: bool
) -> Tensor:
    channels, scale = x.shape[1], len(filters)
    machine = Machine(torch.get_num_threads(), library)
    blocks = plan_blocks(machine, (channels, channels), _WIDTH, _ROWS, filters, library.tile_panel())
    assert blocks is not None
    window = functional.pad(x, (*blocks.columns, 1, 1))[0].permute(1, 2, 0).contiguous()
    out = torch.full((scale * _ROWS, scale * _WIDTH, channels), torch.nan)
    scratch = torch.full((blocks.scratch_bytes // 4,), torch.nan)
    blocks.run(window, blocks.transform_weight(weight, odd=odd), bias, scratch, out, odd=odd)
    return out.permute(2, 0, 1)[None]
