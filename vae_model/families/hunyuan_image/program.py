"""Ops of the HunyuanImage 2.1 autoencoder's halves.

Modules are found by the original's names, so the host's own are read just as well as ours. What the layers between
levels do is told by their classes; the host calls the one that upsamples an unshuffle.
"""

from __future__ import annotations

from typing import Any

from ...exact.layer import UnsupportedModule
from ...exact.ops.beside import Beside
from ...exact.ops.convolve import Convolve
from ...exact.ops.squares import Gather, Spread
from ...exact.program import Op, Program, make_program
from ...exact.read import describe, read_conv, read_norm, require_children, require_plain
from ...exact.stream.squares import Squares
from ..ldm.program import read_middle, read_residual

SPREADS = ("ConvolveAndSpread", "PixelUnshuffle2D")
GATHERS = ("ConvolveAndGather", "PixelShuffle2D")


def hunyuan_program(coder: Any) -> Program:
    """The program of an encoder or decoder; UnsupportedModule, naming the module, for anything without a rule."""
    try:
        return _build(coder)
    except (AttributeError, IndexError) as error:
        raise UnsupportedModule(f"{describe(coder)}: expected all parts of a coder, got {error}") from error


def _build(coder: Any) -> Program:
    require_plain(coder)
    decodes = hasattr(coder, "up")
    require_children(coder, describe(coder), {"conv_in", "mid", "norm_out", "conv_out", "up" if decodes else "down"})
    first, norm = read_conv(coder.conv_in, "conv_in"), read_norm(coder.norm_out, "norm_out")
    last, middle = Convolve(read_conv(coder.conv_out, "conv_out"), norm, "silu"), read_middle(coder.mid)
    if decodes:
        ops = [_fitted(Convolve(first)), *middle, *_levels(coder.up, "up"), last]
    else:
        ops = [Convolve(first), *_levels(coder.down, "down"), *middle, _fitted(last)]
    return make_program(ops)


def _fitted(convolve: Convolve) -> Op:
    """A convolution with its input, of repeated or averaged channels, beside it."""
    many, few = sorted(convolve.conv.channels, reverse=True)
    if many % few:
        raise UnsupportedModule(f"{convolve.name}: expected {few} channels to divide {many}")
    return Beside((convolve,))


def _levels(levels: Any, name: str) -> list[Op]:
    ops: list[Op] = []
    for number, level in enumerate(levels):
        where = f"{name}.{number}"
        require_children(level, where, {"block", "attn", "upsample", "downsample"})
        if len(getattr(level, "attn", ())):
            raise UnsupportedModule(f"{where}: expected no attention beside the blocks, got some")
        for index, block in enumerate(level.block):
            ops += read_residual(block, f"{where}.block.{index}")
        if name == "up" and hasattr(level, "upsample"):
            ops += _spread(level.upsample, f"{where}.upsample")
        elif hasattr(level, "downsample"):
            ops += _gather(level.downsample, f"{where}.downsample")
    return ops


def _squares(channels: int) -> Squares:
    """Pixel behind pixel, each with all its channels."""
    return Squares(channels, (0, channels, 2 * channels, 3 * channels))


def _spread(layer: Any, name: str) -> list[Op]:
    _require_class(layer, name, SPREADS)
    conv = read_conv(layer.conv, f"{name}.conv")
    return [_fitted(Convolve(conv)), Spread(_squares(conv.out_channels // 4))]


def _gather(layer: Any, name: str) -> list[Op]:
    _require_class(layer, name, GATHERS)
    conv = read_conv(layer.conv, f"{name}.conv")
    return [_fitted(Convolve(conv)), Gather(_squares(conv.out_channels), 4 * conv.out_channels)]


def _require_class(layer: Any, name: str, wanted: tuple[str, ...]) -> None:
    """Attributes alone do not tell what a forward does."""
    if type(layer).__name__ not in wanted:
        raise UnsupportedModule(f"{name}: expected {' or '.join(wanted)}, got {describe(layer)}")
    require_children(layer, name, {"conv"})
