"""Matrix products by the fastest of the libraries there are; timed once in a process.

On CPUs PyTorch multiplies float32 matrices with one library, and offers another one for layers whose weights are
fixed. Which is faster depends on the CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from .profile import profile_of

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(..., n, C), (m, C), bias (m,) or None -> (..., n, m)."""
_Way = TypeVar("_Way")
_PROBE = 256
"""Channels of the products that are timed; the sum of so many ones."""
_TURNS = 12


class Products:
    """Products of a few hundred rows with weights that are arranged once; by the library behind `torch.mm`."""

    most_terms = 176
    """So many are summed without a break. Libraries make longer sums: some in one row, some in parts of 256 terms."""

    def parts(self, channels: int) -> list[tuple[int, int]]:
        """First and last but one of the channels that are summed without a break."""
        count = -(-channels // self.most_terms)
        step = -(-channels // count // 16) * 16  # whole vectors
        return [(start, min(start + step, channels)) for start in range(0, channels, step)]

    def arrange(self, weights: Tensor, first: int, target: Tensor) -> None:
        """Write the weights of some results, (g, n, some, C), from `first` on, to their place in (g, n, m, C)."""
        groups, results = target.shape[1:3]
        for start, end in self.parts(target.shape[3]):
            part = target.flatten(1)[:, groups * results * start : groups * results * end]
            part = part.view(-1, groups, results, end - start)
            part[:, :, first : first + weights.shape[2]] = weights[..., start:end]

    def grouped(self, tokens: Sequence[Tensor], weights: Tensor) -> Tensor:
        """n products: for every part (count, n, its channels), dense, and arranged (n, m, C) -> (count, n, m)."""
        groups, results, channels = weights.shape
        result = None
        for (start, end), part in zip(self.parts(channels), tokens, strict=True):
            kernel = weights.view(-1)[groups * results * start : groups * results * end]
            kernel = kernel.view(groups, results, end - start).transpose(1, 2)
            x = part.transpose(0, 1)
            result = torch.bmm(x, kernel) if result is None else result.baddbmm_(x, kernel)
        assert result is not None
        return result.transpose(0, 1)

    def single(self, a: Tensor, weights: Tensor, out: Tensor) -> None:
        """(count, C) and arranged (m, C) into (count, m), whose rows may lie apart."""
        results, channels = weights.shape
        for start, end in self.parts(channels):
            part = weights.view(-1)[start * results : end * results].view(results, end - start).t()
            if start:
                out.addmm_(a[:, start:end], part)
            else:
                torch.mm(a[:, start:end], part, out=out)


class OneDnnProducts(Products):
    """By oneDNN. Several products at once are a convolution of groups, whose results are added in place."""

    def grouped(self, tokens: Sequence[Tensor], weights: Tensor) -> Tensor:
        groups, results, channels = weights.shape
        convolution, result = torch.ops.mkldnn, None
        how = ([0, 0], [1, 1], [1, 1], groups)  # padding, stride, dilation
        for (start, end), part in zip(self.parts(channels), tokens, strict=True):
            kernel = weights.view(-1)[groups * results * start : groups * results * end]
            kernel = kernel.view(groups * results, end - start, 1, 1)
            x = part.view(1, len(part), 1, -1).permute(0, 3, 1, 2)
            if result is None:
                result = convolution._convolution_pointwise(x, kernel, None, *how, "none", [], "")
            else:
                convolution._convolution_pointwise_.binary(result, x, kernel, None, *how, "add", None, None, [], None)
        assert result is not None
        return result.permute(0, 2, 3, 1).reshape(-1, groups, results)

    def single(self, a: Tensor, weights: Tensor, out: Tensor) -> None:
        results, channels = weights.shape
        for start, end in self.parts(channels):
            part = weights.view(-1)[start * results : end * results].view(results, end - start)
            product = _onednn(a[:, start:end], part, None)
            if start:
                out += product
            else:
                out.copy_(product)


def _plain(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(a, b, bias)


def _onednn(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")


@cache
def best_product(device_type: str, dtype: torch.dtype) -> Product:
    """The fastest for single products of many rows."""
    if not _has_choice(device_type, dtype):
        return _plain
    a = torch.ones(512, _PROBE)
    return _fastest((_plain, _onednn), lambda way: way(a, a, None))


@cache
def best_products() -> Products:
    """The fastest for products with weights that are arranged, of float32 on CPUs."""
    ways = (Products(), OneDnnProducts())
    if not _has_choice("cpu", torch.float32):
        return ways[0]
    tokens, weights = torch.ones(192, 6, _PROBE), torch.ones(6, 256, _PROBE)

    def run(way: Products) -> Tensor:
        return way.grouped([tokens[..., start:end].contiguous() for start, end in way.parts(_PROBE)], weights)

    return _fastest(ways, run)


def _has_choice(device_type: str, dtype: torch.dtype) -> bool:
    return profile_of(device_type).onednn and dtype == torch.float32 and torch.backends.mkldnn.is_available()


def _fastest(ways: Iterable[_Way], run: Callable[[_Way], Tensor]) -> _Way:
    """The quickest of those that multiply ones right; the first way where none can run now.

    They take turns in one thread, and the least of their times counts, so that what else runs on the machine decides
    nothing: several threads that must wait for each other would on a busy one.
    """
    ways = tuple(ways)
    seconds: dict[_Way, float] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for turn in range(_TURNS):
            for way in ways if turn == 0 else tuple(seconds):
                try:
                    started = time.perf_counter()
                    result = run(way)
                    seconds[way] = min(time.perf_counter() - started, seconds.get(way, math.inf))
                    if turn == 0 and not bool((result == _PROBE).all()):
                        del seconds[way]
                except (RuntimeError, AttributeError, NotImplementedError):
                    seconds.pop(way, None)
    finally:
        torch.set_num_threads(threads)
    return min(seconds or ways, key=lambda way: seconds.get(way, 0.0))
