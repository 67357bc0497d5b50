"""What a temporal decoder's layers do over the frames of a group, as ops.

Only our own classes are read: a host hands its frames over in ways of its own.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ...exact.layer import Conv, TimeConv, UnsupportedModule
from ...exact.ops.frames import TimeConvolve, TimeResidual
from ...exact.read import describe, read_conv, read_norm, require_children
from .model import AE3DConv, VideoDecoder, VideoResBlock

TIME_CODERS = (VideoDecoder,)


def time_residual(block: Any, name: str) -> list[TimeResidual]:
    """What a block does over time; nothing for a block of single frames."""
    if type(block) is not VideoResBlock:
        return []
    stack, name = block.time_stack, f"{name}.time_stack"
    require_children(stack, name, {"in_layers", "out_layers"})
    return [
        TimeResidual(
            read_norm(stack.in_layers[0], f"{name}.in_layers.0"),
            _read_time_conv(stack.in_layers[2], f"{name}.in_layers.2"),
            read_norm(stack.out_layers[0], f"{name}.out_layers.0"),
            _read_time_conv(stack.out_layers[3], f"{name}.out_layers.3"),
            block.mix_share,
        )
    ]


def last_conv(layer: Any) -> tuple[Conv, list[TimeConvolve]]:
    """conv_out, and what it does over time."""
    if type(layer) is not AE3DConv:
        return read_conv(layer, "conv_out"), []
    conv = read_conv(layer, "conv_out", plain=AE3DConv)
    return conv, [TimeConvolve(_read_time_conv(layer.time_mix_conv, "conv_out.time_mix_conv"))]


def _read_time_conv(layer: nn.Module, name: str) -> TimeConv:
    if type(layer) is not nn.Conv3d:
        raise UnsupportedModule(f"{name}: expected a 3-D convolution, got {describe(layer)}")
    frames, *others = layer.kernel_size
    if others != [1, 1] or layer.padding != (frames // 2, 0, 0) or layer.in_channels != layer.out_channels:
        raise UnsupportedModule(f"{name}: expected a convolution over frames alone, got one over {layer.kernel_size}")
    return TimeConv(layer, name, layer.in_channels, frames)
