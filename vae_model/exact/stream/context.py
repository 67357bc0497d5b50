"""What every part of one run shares: batch, dtype, device, memory order, weights and the store for spilled strips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...attention.backends import pytorch_attention
from ...kernels.method import Machine, Method, Wanted
from ...kernels.methods import method_for, this_machine
from ..extent import Extent
from ..layer import Conv, Norm, PixelNorm, RootNorm
from ..memory.spill import Spill
from ..sharding.share import WHOLE, Share
from .past import Past
from .ranks import ALONE, Ranks

Attention = Callable[..., Tensor]
"""(q, k, v), q (B, n, C), k and v (B, N, C) -> (B, n, C); with `max_bytes` its scores stay within so many."""
Fill = Callable[[Tensor, Tensor], None]
"""(target, x): write what stands before a convolution (norm, activation) into a piece of its window."""
Weights = Callable[[nn.Module, Tensor], "tuple[Tensor, Tensor | None]"]
"""(layer, like) -> its weight and bias with the dtype and device of `like`. Asked once per layer and pass."""


def own_weights(layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """The provider for layers that hold their weights themselves; norms of single pixels call theirs gamma."""
    weight = cast(Tensor, layer.gamma if hasattr(layer, "gamma") else layer.weight)
    bias = cast("Tensor | None", getattr(layer, "bias", None))
    return weight.to(like), None if bias is None else bias.to(like)


def _is_part(weight: Tensor, stored: Tensor) -> bool:
    """Whether it is seen in the stored one, rather than in one made of that."""
    return weight.untyped_storage().data_ptr() == stored.untyped_storage().data_ptr()


@dataclass
class Context:
    """Shapes are (batch * frames, channels, rows, width); `dtype` is that of every plane."""

    batch: int
    """Pictures that run together, or 1 clip."""
    dtype: torch.dtype
    device: torch.device
    channels_last: bool = True
    weights: Weights = own_weights
    spill: Spill | None = None
    attend: Attention = pytorch_attention
    fused_attention: Callable[[int], bool] = lambda width: True
    """Whether attention of so many channels has a kernel that writes no scores down; else it gets `max_bytes`."""
    share: Share = WHOLE
    """Which rows of every plane are computed here; all sizes are those of this share."""
    ranks: Ranks = ALONE
    """Those who compute the others."""
    machine: Machine | None = None
    """None: this one, as it is now."""
    past: Past | None = None
    """Of a clip that runs part by part, what its convolutions saw of the parts before; None: it runs whole."""
    _scratch: Tensor | None = None
    _methods: dict[tuple[str, Wanted], Method] = field(default_factory=dict[tuple[str, Wanted], Method])
    _asked: dict[Any, tuple[Conv, Method]] = field(default_factory=dict[Any, tuple[Conv, Method]])

    def row_bytes(self, size: Extent) -> int:
        """Bytes of one row of a plane, of all pictures or frames."""
        return self.batch * size.frames * size.channels * size.width * self.dtype.itemsize

    def plane_bytes(self, size: Extent) -> int:
        """Bytes of a whole plane."""
        return self.row_bytes(size) * size.height

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory order of strips and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def strip(self, size: Extent, rows: int) -> Tensor:
        """A new strip of so many rows of a plane."""
        return self.empty(self.batch * size.frames, size.channels, rows, size.width)

    def empty(self, images: int, channels: int, rows: int, width: int) -> Tensor:
        """Room for so many pictures or frames."""
        shape = (images, channels, rows, width)
        return torch.empty(shape, dtype=self.dtype, device=self.device, memory_format=self.memory_format)

    def scratch(self, size: int) -> Tensor:
        """At least `size` bytes of flat float32 memory for use within one call; kept until `free_scratch`."""
        if self._scratch is None or self._scratch.numel() * 4 < size:
            self._scratch = None  # the old one is freed before the new one is made
            self._scratch = torch.empty(-(-size // 4), dtype=torch.float32, device=self.device)
        return self._scratch

    def free_scratch(self) -> None:
        """Called when a pass is done."""
        self._scratch = None

    def layer_weights(self, conv: Conv, taps: int = 1) -> tuple[Tensor, Tensor | None]:
        """Weight (out, in, k, k), of several taps (out, in, taps, k, k), and bias (out,) as the provider gives them."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        weight, bias = conv.read(lambda module: self.weights(module, like), taps)
        stored = getattr(conv.module, "weight", None)
        if isinstance(stored, Tensor) and weight.numel() < stored.numel() and not _is_part(weight, stored):
            weight = weight.clone()  # of weights that were made for this, only what is wanted stays
        return weight, bias

    def conv_weights(self, conv: Conv) -> tuple[Tensor, Tensor | None]:
        """The same in this run's memory order."""
        weight, bias = self.layer_weights(conv)
        return weight.contiguous(memory_format=self.memory_format), bias

    def norm_weights(self, norm: Norm | RootNorm) -> tuple[Tensor, Tensor]:
        """Weight and bias (channels,) of a norm, in float32 or better."""
        wide = torch.promote_types(self.dtype, torch.float32)
        weight, bias = self.weights(norm.module, torch.empty(0, dtype=wide, device=self.device))
        assert bias is not None
        return weight, bias

    def pixel_weight(self, norm: PixelNorm) -> Tensor:
        """The weight of a norm of single pixels, (channels, 1, 1), in float32 or better."""
        wide = torch.promote_types(self.dtype, torch.float32)
        weight, _ = self.weights(norm.module, torch.empty(0, dtype=wide, device=self.device))
        return weight.reshape(-1, 1, 1)

    def method(self, kind: str, conv: Conv, source: Extent, fast_rows: int) -> Method:
        """What does this convolution of planes of that size.

        `fast_rows`: rows of a strip for which a faster method may be used where it pays, 0 for the plain one.
        """
        asked = id(conv), source, fast_rows, kind
        if asked in self._asked:
            return self._asked[asked][1]
        self.machine = self.machine or this_machine(self.device.type, self.dtype)
        wanted = Wanted(
            conv.channels, source.width, fast_rows, conv.kernel, conv.stride, (conv.pad_before, conv.pad_after),
            conv.mode == "zeros", self.channels_last or conv.taps > 0, conv.taps_of(source.frames),
            self.batch * source.frames, self.dtype, self.device.type, self.channels_last, self.machine, conv.groups,
        )  # fmt: skip
        found = self._methods.get((kind, wanted))
        if found is None:
            found = self._methods[kind, wanted] = method_for(kind, wanted)
        self._asked[asked] = conv, found  # held, so that no other one gets its number
        return found
