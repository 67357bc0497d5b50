"""What weights take that are made anew for each layer: stored in another dtype, elsewhere, or patched on their way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..layer import Conv
from ..program import Program

_COPIES = 2
"""Of one layer at a time: as it comes, and as it is kept until it is arranged."""


def cast_bytes(program: Program, dtype: torch.dtype, is_cast: Callable[[nn.Module], bool]) -> int:
    """Bytes that such weights take at most beside what a run takes of stored ones.

    One layer's at a time, until they are in the order that its method wants; and all of those whose stored weights are
    used as they are, 1x1 convolutions.

    Args:    is_cast: (layer) -> whether its weights are made anew.
    """
    largest, held = 0, 0
    for part in _layers(program.ops):
        modules = part.module if isinstance(part.module, nn.ModuleList) else [part.module]
        weights = [cast(Tensor, module.weight) for module in modules if is_cast(module)]
        size = sum(weight.numel() for weight in weights) * dtype.itemsize
        largest = max(largest, size)
        if isinstance(part, Conv) and part.kernel == 1 and size:
            held += part.in_channels // part.groups * part.out_channels * dtype.itemsize
    return _COPIES * largest + held


def _layers(part: Any) -> Iterator[Any]:
    """The layers with weights of so many ops, of any depth."""
    if isinstance(part, tuple):
        for one in cast("tuple[Any, ...]", part):
            yield from _layers(one)
    elif is_dataclass(part):
        if isinstance(getattr(part, "module", None), nn.ModuleList) or _has_weights(getattr(part, "module", None)):
            yield part
        for field in fields(part):
            yield from _layers(getattr(part, field.name))


def _has_weights(module: Any) -> bool:
    """More than a number or two for each channel."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim > 1
