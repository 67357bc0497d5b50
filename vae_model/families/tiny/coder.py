"""The halves of the tiny autoencoder, and the block that both are made of.

Source: diffusers `EncoderTiny` and `DecoderTiny` (Apache-2.0; keys), madebyollin/taesd (MIT); re-implemented.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...group_norm import GroupNorm
from ..arguments import TINY, require_choice, require_kinds, require_planes, require_sides

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
}
UPSAMPLE_MODES = ("nearest", "bilinear", "bicubic", "nearest-exact")
"""Of torch's Upsample, those for pictures."""


class AutoencoderTinyBlock(nn.Module):
    """Three 3x3 convolutions with a skip, and for TAEF2 a GroupNorm branch in front, over the whole image."""

    def __init__(self, in_channels: int, out_channels: int, act_fn: str = "relu", midblock_gn: bool = False) -> None:
        require_kinds(type(self).__name__, locals(), TINY)
        require_choice("act_fn", act_fn, ACTIVATIONS)
        super().__init__()
        activation = ACTIVATIONS[act_fn]
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            activation(),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
            activation(),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
        )
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.fuse = nn.ReLU()
        if midblock_gn:
            inner = 4 * in_channels
            self.pool = nn.Sequential(
                nn.Conv2d(in_channels, inner, kernel_size=1, bias=False),
                GroupNorm(4, inner),
                nn.ReLU(),
                nn.Conv2d(inner, in_channels, kernel_size=1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            require_planes(x, cast(nn.Conv2d, self.conv[0]).in_channels, type(self).__name__)
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return self.fuse(self.conv(x) + self.skip(x))


def _require(x: Tensor, first: nn.Module, owner: str) -> None:
    require_planes(x, cast(nn.Conv2d, first).in_channels, owner, first)
    require_sides(x, 1, owner)


def _run(layers: nn.Sequential, x: Tensor, checkpointing: bool) -> Tensor:
    """All layers; with `checkpointing` and autograd, what is inside a block is computed again on the way back."""
    if not (checkpointing and torch.is_grad_enabled()):
        return layers(x)
    for layer in layers:
        block = isinstance(layer, AutoencoderTinyBlock)
        x = cast(Tensor, checkpoint(layer, x, use_reentrant=False)) if block else layer(x)
    return x


class EncoderTiny(nn.Module):
    """Images in -1..1 (B, in_channels, H, W) to latents; every stage after the first halves both sides, rounding up.

    With `strided_stem` the first stage halves, too, and the first two convolutions are activated, as in TAESana.
    """

    gradient_checkpointing = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: Sequence[int],
        block_out_channels: Sequence[int],
        act_fn: str,
        midblock_gn: bool = False,
        strided_stem: bool = False,
    ) -> None:
        require_kinds(type(self).__name__, locals(), TINY)
        require_choice("act_fn", act_fn, ACTIVATIONS)
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for stage, (blocks, stage_width) in enumerate(zip(num_blocks, block_out_channels, strict=True)):
            stride = 1 if stage == 0 and not strided_stem else 2
            bias = stage <= strided_stem
            layers.append(nn.Conv2d(width, stage_width, kernel_size=3, padding=1, stride=stride, bias=bias))
            if strided_stem and stage < 2:
                layers.append(ACTIVATIONS[act_fn]())
            width = stage_width
            gn = midblock_gn and stage == len(num_blocks) - 1
            layers += [AutoencoderTinyBlock(width, width, act_fn, gn) for _ in range(blocks)]
        layers.append(nn.Conv2d(width, out_channels, kernel_size=3, padding=1))
        self.layers = nn.Sequential(*layers)

    def require(self, x: Tensor) -> None:
        """InputError for what are no such images."""
        _require(x, self.layers[0], type(self).__name__)

    def forward(self, x: Tensor) -> Tensor:
        self.require(x)
        return _run(self.layers, (x + 1) / 2, self.gradient_checkpointing)


class DecoderTiny(nn.Module):
    """Latents, softly limited to -3..3, to images of about -1..1; every stage but the last doubles both sides."""

    gradient_checkpointing = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: Sequence[int],
        block_out_channels: Sequence[int],
        upsampling_scaling_factor: int,
        act_fn: str,
        upsample_fn: str,
        midblock_gn: bool = False,
    ) -> None:
        require_kinds(type(self).__name__, locals(), TINY)
        require_choice("act_fn", act_fn, ACTIVATIONS)
        require_choice("upsample_fn", upsample_fn, UPSAMPLE_MODES)
        super().__init__()
        width = block_out_channels[0]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, kernel_size=3, padding=1), ACTIVATIONS[act_fn]()]
        for stage, blocks in enumerate(num_blocks):
            last = stage == len(num_blocks) - 1
            layers += [AutoencoderTinyBlock(width, width, act_fn, midblock_gn and stage == 0) for _ in range(blocks)]
            if not last:
                layers.append(nn.Upsample(scale_factor=upsampling_scaling_factor, mode=upsample_fn))
            next_width = out_channels if last else block_out_channels[stage + 1]
            layers.append(nn.Conv2d(width, next_width, kernel_size=3, padding=1, bias=last))
            width = next_width
        self.layers = nn.Sequential(*layers)

    def require(self, x: Tensor) -> None:
        """InputError for what are no such latents."""
        _require(x, self.layers[0], type(self).__name__)

    def forward(self, x: Tensor) -> Tensor:
        self.require(x)
        x = torch.tanh(x / 3) * 3
        return _run(self.layers, x, self.gradient_checkpointing) * 2 - 1
