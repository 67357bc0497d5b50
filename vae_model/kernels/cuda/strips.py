"""Norm with activation, moments, softmax and copies of strips on NVIDIA GPUs, by the kernels of strips.cu.

PyTorch's own leave much of a GPU's bandwidth unused, above all in statistics of 16-bit values; and norm and activation
are two passes there, with a rounding in between.
"""

from __future__ import annotations

from ctypes import c_double, c_float, c_int, c_longlong, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .compiler import Kernel, load

_VALUES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_NAMES = ("normalise", "copy_pixels", "strip_moments", "merge_moments", "softmax_part")
_VECTOR_BYTES = 16
_THREADS = 256
_BLOCKS = 512
"""Parts of a strip's moments, at most: enough to fill a GPU, few enough for the merge to be cheap."""
_MOST_ROWS = 65535
"""Of a grid in its second and third direction."""


def kernels_for(x: Tensor) -> dict[str, Kernel] | None:
    """The kernels for a tensor's dtype and device; None where there are none."""
    if x.device.type != "cuda" or x.dtype not in _VALUES or type(x) is not Tensor:  # tensors without data are others
        return None
    return _kernels(x.dtype, x.device.index)


@cache
def _kernels(dtype: torch.dtype, device: int) -> dict[str, Kernel] | None:
    if torch.version.cuda is None:
        return None
    source = Path(__file__).with_name("strips.cu").read_text(encoding="utf-8")
    return load(source, _NAMES, (f"VALUE={_VALUES[dtype]}",), device)


class Steps(NamedTuple):
    """Distances of pixels, rows and images in vectors."""

    pixel: int
    row: int
    image: int


def _vectors(x: Tensor) -> Steps | None:
    """The distances in a tensor that consists of whole vectors; None for others."""
    width = _VECTOR_BYTES // x.element_size()
    images, channels, rows, columns = x.shape
    far, dense, row, pixel = x.stride()
    # The distance between things of which there is one may be anything.
    pixel = pixel if columns > 1 else channels
    row = row if rows > 1 else columns * pixel
    far = far if images > 1 else rows * row
    if (dense != 1 and channels > 1) or channels % width or pixel % width or row % width or far % width:
        return None
    if x.data_ptr() % _VECTOR_BYTES or images > _MOST_ROWS or rows > _MOST_ROWS:
        return None
    return Steps(pixel // width, row // width, far // width)


def normalise(target: Tensor, x: Tensor, scale: Tensor, shift: Tensor, *, silu: bool) -> bool:
    """Write x * scale + shift, with SiLU behind it or not, into `target`; False where it cannot be done here.

    Args:    target, x: (B, C, n, W), channels innermost. scale, shift: (B, C, 1, 1), float32, dense.
    """
    kernels = kernels_for(x)
    if kernels is None or target.dtype != x.dtype or scale.dtype != torch.float32 or not x.numel():
        return False
    source, end = _vectors(x), _vectors(target)
    images, channels, rows, width = x.shape
    vectors = channels * x.element_size() // _VECTOR_BYTES
    if source is None or end is None or not source.pixel == end.pixel == vectors or scale.shape[0] != images:
        return False
    row = vectors * width
    if source.row == end.row == row and row * rows < 2**31:
        row, rows = row * rows, 1  # rows without anything between them are one
    arguments = [
        *_pointers(x, target, scale, shift), c_int(row), c_int(vectors), c_int(silu), c_int(source.row), c_int(end.row),
        c_longlong(source.image), c_longlong(end.image),
    ]  # fmt: skip
    kernels["normalise"]((-(-row // _THREADS), rows, images), _THREADS, arguments)
    return True


def copy_pixels(target: Tensor, x: Tensor) -> None:
    """target = x, both (B, C, n, W), channels innermost, pixels however far apart."""
    kernels = kernels_for(x)
    source, end = (None, None) if kernels is None or target.dtype != x.dtype else (_vectors(x), _vectors(target))
    if kernels is None or source is None or end is None or not x.numel():
        target.copy_(x)
        return
    images, channels, rows, width = x.shape
    vectors = channels * x.element_size() // _VECTOR_BYTES
    arguments = [
        *_pointers(x, target), c_int(width * vectors), c_int(vectors), c_int(source.pixel), c_int(end.pixel),
        c_int(source.row), c_int(end.row), c_longlong(source.image), c_longlong(end.image),
    ]  # fmt: skip
    kernels["copy_pixels"]((-(-width * vectors // _THREADS), rows, images), _THREADS, arguments)


def _pointers(*tensors: Tensor) -> list[Any]:
    return [c_void_p(tensor.data_ptr()) for tensor in tensors]


def can_add_moments(rows: Tensor) -> bool:
    """Whether `add_moments` takes these rows (B, C, n, W)."""
    if kernels_for(rows) is None or not rows.numel() or rows.shape[1] * rows.element_size() > _THREADS * _VECTOR_BYTES:
        return False
    return rows.is_contiguous(memory_format=torch.channels_last) and _vectors(rows) is not None


def add_moments(rows: Tensor, known: int, mean: Tensor, m2: Tensor) -> int:
    """Merge the moments of some rows into `mean` and `m2`, float64 (B, G), of `known` values.

    Returns: how many values are known now.
    """
    kernels = kernels_for(rows)
    assert kernels is not None
    images, channels, height, width = rows.shape
    groups, pixels = mean.shape[1], height * width
    vectors = channels * rows.element_size() // _VECTOR_BYTES
    lanes = _THREADS // vectors
    turns = max(8, -(-pixels // (lanes * _BLOCKS)))
    blocks = -(-pixels // (lanes * turns))
    parts = torch.empty((images, blocks, channels, 2), dtype=torch.float32, device=rows.device)
    shared_bytes = 2 * lanes * vectors * _VECTOR_BYTES * 4 // rows.element_size()
    arguments = [*_pointers(rows, parts), c_int(pixels), c_int(vectors), c_int(turns)]
    kernels["strip_moments"]((blocks, images, 1), lanes * vectors, arguments, shared_bytes)
    arguments = [*_pointers(parts, mean, m2), c_double(known)]
    arguments += map(c_int, (blocks, channels, channels // groups, pixels, lanes * turns))
    kernels["merge_moments"]((groups, images, 1), _THREADS, arguments)
    return known + pixels * (channels // groups)


def softmax_part(scores: Tensor, weights: Tensor, state: tuple[Tensor, Tensor, Tensor], scale: float) -> bool:
    """Weights of a block of scores, in powers of two of scores * scale; False where it cannot be done here.

    Args:    scores: (n, m) float32, dense. weights: (n, m), where they go; of float32, the scores' own memory may do.
             state: largest score, sum of weights and worth of what was summed before, (n,) float32 each; updated.
    """
    kernels = kernels_for(weights)
    if kernels is None:
        return False
    arguments = [*_pointers(scores, weights, *state), c_int(scores.shape[1]), c_float(scale)]
    kernels["softmax_part"]((len(scores), 1, 1), _THREADS, arguments)
    return True
