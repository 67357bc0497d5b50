"""Ops of the Wan 2.1 and Qwen-Image autoencoder's halves.

Modules are found by the original's names (`conv1`, `downsamples`, `middle`, `residual`, `head`), so the host's own are
read just as well as ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ...exact.layer import Conv, PixelNorm, TimeConv, UnsupportedModule
from ...exact.ops.attend import Attend
from ...exact.ops.convolve import Convolve
from ...exact.ops.residual import Residual
from ...exact.ops.time_resample import TimeResample
from ...exact.ops.upsample import Upsample
from ...exact.program import Op, Program, make_program
from ...exact.read import describe, read_conv, require_children, require_plain
from ..coder import all_parts_of

_BLOCK = ("RMS_norm", "SiLU", "CausalConv3d", "RMS_norm", "SiLU", "Dropout", "CausalConv3d")
_HEAD = ("RMS_norm", "SiLU", "CausalConv3d")


Read = Callable[[Any, str], list[Op]]
"""(layer, its name) -> its ops."""


def wan_program(
    coder: Any, *, before: Any = None, after: Any = None, also: Mapping[str, Read] | None = None
) -> Program:
    """The program of an Encoder3d or Decoder3d.

    Args:    coder: the module tree. before, after: 1x1 convolutions around it (conv2, conv1) or None.
             also: how further layers are read, by class, of a network that has them.
    Raises:  UnsupportedModule, naming the module, for anything without a rule.
    """
    with all_parts_of(coder):
        require_plain(coder)
        ops: list[Op] = [Convolve(_causal(coder.conv1, "conv1"))]
        if type(coder).__name__ == "Decoder3d":
            row, parts = "upsamples", ("middle", "upsamples")
        elif type(coder).__name__ == "Encoder3d":
            row, parts = "downsamples", ("downsamples", "middle")
        else:
            raise UnsupportedModule(f"{describe(coder)}: expected Encoder3d or Decoder3d")
        require_children(coder, describe(coder), {"conv1", "middle", "head", row})
        for part in parts:
            ops += read_row(getattr(coder, part), part, also)
        norm, _, conv = _expect(coder.head, "head", _HEAD)
        ops.append(Convolve(_causal(conv, "head.2"), _pixel_norm(norm, "head.0"), "silu"))
        for layer, name, index in ((before, "conv2", 0), (after, "conv1 behind the encoder", len(ops) + 1)):
            if layer is not None:
                require_plain(layer)
                ops.insert(index, Convolve(_causal(layer, name, kernel=1)))
        return make_program(ops)


def read_row(layers: Any, name: str, also: Mapping[str, Read] | None = None) -> list[Op]:
    """The ops of layers that follow each other."""
    ops, kinds = list[Op](), {**_READ, **(also or {})}
    for number, layer in enumerate(layers):
        kind = type(layer).__name__
        if kind not in kinds:
            raise UnsupportedModule(f"{name}.{number}: expected one of {', '.join(kinds)}, got {kind}")
        ops += kinds[kind](layer, f"{name}.{number}")
    return ops


def _expect(layers: Any, name: str, classes: tuple[str, ...]) -> list[Any]:
    """The layers of a plain sequence of those classes."""
    found = tuple(type(layer).__name__ for layer in layers)
    if type(layers) is not nn.Sequential or found != classes:
        raise UnsupportedModule(f"{name}: expected {', '.join(classes)}, got {', '.join(found)}")
    return list(layers)


def _residual(block: Any, name: str) -> list[Op]:
    require_children(block, name, {"residual", "shortcut"})
    norm1, _, conv1, norm2, _, _, conv2 = _expect(block.residual, f"{name}.residual", _BLOCK)
    plain = isinstance(block.shortcut, nn.Identity)
    residual = Residual(
        _pixel_norm(norm1, f"{name}.residual.0"),
        _causal(conv1, f"{name}.residual.2"),
        _pixel_norm(norm2, f"{name}.residual.3"),
        _causal(conv2, f"{name}.residual.6"),
        None if plain else _causal(block.shortcut, f"{name}.shortcut", kernel=1),
    )
    return [residual]


def _attention(layer: Any, name: str) -> list[Op]:
    require_children(layer, name, {"norm", "to_qkv", "proj"})
    norm = _pixel_norm(layer.norm, f"{name}.norm")
    whole = read_conv(layer.to_qkv, f"{name}.to_qkv", kernel=1, padding=0)
    if whole.out_channels != 3 * norm.channels:
        raise UnsupportedModule(f"{name}.to_qkv: expected {3 * norm.channels} channels, got {whole.out_channels}")
    q, k, v = (whole.part(number * norm.channels, norm.channels) for number in range(3))
    return [Attend(norm, q, k, v, read_conv(layer.proj, f"{name}.proj", kernel=1, padding=0))]


def _resample(layer: Any, name: str) -> list[Op]:
    """Frames are doubled before rows and columns, and halved behind them."""
    require_children(layer, name, {"resample", "time_conv"})
    first, conv = layer.resample
    where, up = f"{name}.resample.1", isinstance(first, nn.Upsample)
    over_time = _time_resample(layer.time_conv, f"{name}.time_conv", up) if hasattr(layer, "time_conv") else []
    if isinstance(first, nn.Upsample):
        if first.scale_factor not in (2.0, (2.0, 2.0)) or first.mode not in ("nearest-exact", "nearest"):
            raise UnsupportedModule(f"{name}: expected nearest x2, got {first}")
        read = read_conv(conv, where)
        if read.mode != "zeros":  # the convolutions before and after it have zeros
            raise UnsupportedModule(f"{where}: expected zeros at the borders, got {read.mode}")
        return [*over_time, Upsample(read)]
    if not isinstance(first, nn.ZeroPad2d) or tuple(first.padding) != (0, 1, 0, 1):
        raise UnsupportedModule(f"{name}: expected zeros on the right and below, got {first}")
    return [Convolve(read_conv(conv, where, stride=2, padding=0, extra_pad=1)), *over_time]


def _time_resample(layer: Any, name: str, up: bool) -> list[Op]:
    """The convolution over frames; what it pads by itself is not looked at, for what stands before it pads.

    A network of pictures has one of a single frame, which is never used.
    """
    if getattr(layer, "kernel_size", None) == (1, 1, 1):
        return []
    channels = getattr(layer, "in_channels", 0)
    found = (layer.kernel_size, layer.dilation, layer.groups, layer.out_channels) if channels else describe(layer)
    strides = [(1, 1, 1)] if up else [(2, 1, 1)]
    if found != ((3, 1, 1), (1, 1, 1), 1, (1 + up) * channels) or layer.stride not in strides:
        raise UnsupportedModule(f"{name}: expected a convolution over 3 frames, got {found}")
    return [TimeResample(TimeConv(layer, name, channels, 3), up)]


_READ: dict[str, Read] = {
    "ResidualBlock": _residual,
    "AttentionBlock": _attention,
    "Resample": _resample,
}
"""By class, since attributes alone do not tell what a forward does."""


def _causal(layer: Any, name: str, kernel: int = 3) -> Conv:
    """A convolution over frames, rows and columns that sees frames of zeros before the first one; it has as many taps
    over frames as over rows, or one.

    It pads before the first frame by itself. The host's classes say so in `_padding`: in newer ones it counts frames
    alone, in older ones columns and rows, too, and the layer's own padding is nothing.
    """
    if not isinstance(layer, nn.Conv3d) or type(layer).__name__ != "CausalConv3d":
        raise UnsupportedModule(f"{name}: expected CausalConv3d, got {describe(layer)}")
    side, frames = kernel // 2, layer.kernel_size[0]
    before = frames - 1
    paddings = [((0, side, side), before), ((0, 0, 0), (side, side, side, side, before, 0))]
    found = (layer.kernel_size, layer.stride, layer.dilation, layer.groups, layer.padding_mode)
    padding = (layer.padding, getattr(layer, "_padding", before))
    wanted = ((frames, kernel, kernel), (1, 1, 1), (1, 1, 1), 1, "zeros")
    if found != wanted or frames not in (1, kernel) or padding not in paddings:
        raise UnsupportedModule(
            f"{name}: expected a causal convolution of {kernel} with zeros around, got {found} and {padding}"
        )
    return Conv(layer, name, layer.in_channels, layer.out_channels, kernel, 1, side, side, taps=frames)


def _pixel_norm(layer: Any, name: str) -> PixelNorm:
    gamma = getattr(layer, "gamma", None)
    if type(layer).__name__ != "RMS_norm" or not isinstance(gamma, nn.Parameter):
        raise UnsupportedModule(f"{name}: expected RMS_norm, got {describe(layer)}")
    channels = gamma.shape[0]
    bias, first = getattr(layer, "bias", None), getattr(layer, "channel_first", True)
    if isinstance(bias, nn.Parameter) or not first or abs(layer.scale - channels**0.5) > 1e-6 * layer.scale:
        raise UnsupportedModule(f"{name}: expected a norm over {channels} channels without bias, got another")
    return PixelNorm(layer, name, channels)
