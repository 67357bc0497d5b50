"""Ops of the deep compression autoencoder's halves."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...exact.layer import Conv, RootNorm, StoredNorm, UnsupportedModule
from ...exact.ops.beside import Beside
from ...exact.ops.block import Block
from ...exact.ops.convolve import Convolve
from ...exact.ops.linear_attend import LinearAttend, chosen
from ...exact.ops.per_pixel import Gate, PerPixel
from ...exact.ops.squares import Gather, Spread
from ...exact.ops.upsample import Upsample
from ...exact.program import Op, Program, make_program
from ...exact.read import describe, read_conv, require_children, require_plain
from ...exact.stream.squares import Squares
from ..coder import all_parts_of
from .layers import ATTENTION_EPS, Down, EfficientViTBlock, ResBlock, RMSNorm, Up

_CELL = (0, 1, 2, 3)
"""Channel 4 * c + 2 * y + x of a cell is channel c of the pixel in row y and column x of its square."""


def dc_program(coder: Any) -> Program:
    """The program of an encoder or decoder; UnsupportedModule, naming the module, for anything without a rule."""
    with all_parts_of(coder):
        require_plain(coder)
        if hasattr(coder, "up_blocks"):
            return make_program(_decoder(coder))
        return make_program(_encoder(coder))


def _encoder(coder: Any) -> list[Op]:
    require_children(coder, describe(coder), {"conv_in", "down_blocks", "conv_out"})
    first = _down(coder.conv_in, "conv_in") if isinstance(coder.conv_in, Down) else [_plain(coder.conv_in, "conv_in")]
    return [*first, *_levels(coder.down_blocks, "down_blocks"), _end(coder.conv_out, "conv_out", coder.shortcut)]


def _decoder(coder: Any) -> list[Op]:
    require_children(coder, describe(coder), {"conv_in", "up_blocks", "norm_out", "conv_out"})
    levels = [op for level in reversed([*coder.up_blocks]) for op in _level(level, "up_blocks")]
    last = _up(coder.conv_out, "conv_out") if isinstance(coder.conv_out, Up) else [_plain(coder.conv_out, "conv_out")]
    norm = PerPixel(_norm(coder.norm_out, "norm_out"), coder.activation)
    return [_end(coder.conv_in, "conv_in", coder.shortcut), *levels, norm, *last]


def _plain(layer: Any, name: str) -> Convolve:
    return Convolve(read_conv(layer, name))


def _end(layer: Any, name: str, shortcut: bool) -> Op:
    """The convolution next to the latents, with its input, of repeated or averaged channels, beside it if wanted."""
    return Beside((_plain(layer, name),)) if shortcut else _plain(layer, name)


def _levels(levels: Any, name: str) -> list[Op]:
    return [op for number, level in enumerate(levels) for op in _level(level, f"{name}.{number}")]


def _level(level: Any, name: str) -> list[Op]:
    kinds = {ResBlock: _residual, EfficientViTBlock: _attention, Down: _down, Up: _up}
    ops: list[Op] = []
    for number, layer in enumerate(level):
        if type(layer) not in kinds:
            raise UnsupportedModule(f"{name}.{number}: expected a block or a step to a level, got {describe(layer)}")
        ops += kinds[type(layer)](layer, f"{name}.{number}")
    return ops


def _norm(layer: Any, name: str) -> RootNorm:
    if type(layer) is RMSNorm:
        return RootNorm(layer, name, len(layer.weight), layer.eps)
    if type(layer) is not nn.BatchNorm2d or not layer.affine or layer.running_var is None:
        raise UnsupportedModule(f"{name}: expected RMSNorm or an affine BatchNorm, got {describe(layer)}")
    if layer.training:
        raise UnsupportedModule(f"{name}: expected evaluation mode, got a BatchNorm in training: call eval() first")
    return StoredNorm(layer, name, layer.num_features, layer.eps)


def _residual(block: Any, name: str) -> list[Op]:
    require_children(block, name, {"conv1", "conv2", "norm"})
    convs = (read_conv(block.conv1, f"{name}.conv1"), read_conv(block.conv2, f"{name}.conv2"))
    norm = _norm(block.norm, f"{name}.norm")
    return [Block((Convolve(convs[0], after=block.activation), Convolve(convs[1]), PerPixel(norm)))]


def _attention(block: Any, name: str) -> list[Op]:
    require_children(block, name, {"attn", "conv_out"})
    return [_linear(block.attn, f"{name}.attn"), _gated(block.conv_out, f"{name}.conv_out")]


def _linear(layer: Any, name: str) -> Op:
    require_children(layer, name, {"to_q", "to_k", "to_v", "to_qkv_multiscale", "to_out", "norm_out"})
    parts = [_pointwise(getattr(layer, part), f"{name}.{part}") for part in ("to_q", "to_k", "to_v")]
    inner, dim = parts[0].out_channels, layer.head_dim
    # One convolution to all three, whose weights stand side by side.
    together = nn.ModuleList(part.module for part in parts)
    convs = [Conv(together, f"{name}.to_q", parts[0].in_channels, 3 * inner, kernel=1, pad_before=0, pad_after=0)]
    for number, scale in enumerate(layer.to_qkv_multiscale):
        where, kernel = f"{name}.to_qkv_multiscale.{number}", int(scale.proj_in.kernel_size[0])
        convs.append(read_conv(scale.proj_in, f"{where}.proj_in", kernel=kernel, padding=kernel // 2, groups=3 * inner))
        convs.append(_pointwise(scale.proj_out, f"{where}.proj_out", groups=3 * inner // dim))
    out, norm = _pointwise(layer.to_out, f"{name}.to_out"), _norm(layer.norm_out, f"{name}.norm_out")
    return LinearAttend(chosen(convs, dim, (0,)), chosen(convs, dim, (1, 2)), out, norm, dim, ATTENTION_EPS)


def _pointwise(layer: Any, name: str, groups: int = 1) -> Conv:
    conv = read_conv(layer, name, kernel=1, padding=0, groups=groups)
    if layer.bias is not None:
        raise UnsupportedModule(f"{name}: expected a convolution without bias, got one")
    return conv


def _gated(layer: Any, name: str) -> Op:
    require_children(layer, name, {"nonlinearity", "conv_inverted", "conv_depth", "conv_point", "norm"})
    inverted = read_conv(layer.conv_inverted, f"{name}.conv_inverted", kernel=1, padding=0)
    depth = read_conv(layer.conv_depth, f"{name}.conv_depth", groups=inverted.out_channels)
    point = read_conv(layer.conv_point, f"{name}.conv_point", kernel=1, padding=0)
    norm = PerPixel(_norm(layer.norm, f"{name}.norm"))
    return Block((Convolve(inverted, after="silu"), Convolve(depth), Gate("silu"), Convolve(point), norm))


def _down(layer: Any, name: str) -> list[Op]:
    require_children(layer, name, {"conv"})
    conv = read_conv(layer.conv, f"{name}.conv", stride=1 if layer.pixels else 2)
    out_channels = conv.out_channels * (4 if layer.pixels else 1)
    ops: list[Op] = [Convolve(conv)]
    if layer.pixels:
        ops.append(Gather(Squares(conv.out_channels, _CELL, 4), out_channels))
    if not layer.shortcut:
        return ops
    run = 4 * conv.in_channels // out_channels
    return [Block(tuple(ops), Gather(_shared(conv.in_channels, run, name), out_channels, run))]


def _up(layer: Any, name: str) -> list[Op]:
    require_children(layer, name, {"conv"})
    conv = read_conv(layer.conv, f"{name}.conv")
    if layer.pixels:  # repeated channels are added before they become pixels
        return [_end(layer.conv, f"{name}.conv", layer.shortcut), Spread(Squares(conv.out_channels // 4, _CELL, 4))]
    if not layer.shortcut:
        return [Upsample(conv)]
    run = 4 * conv.out_channels // conv.in_channels
    return [Block((Upsample(conv),), Spread(_shared(conv.out_channels, run, name)))]


def _shared(channels: int, run: int, name: str) -> Squares:
    """Squares of which `run` pixels that follow each other share a channel of the cell."""
    if run not in (1, 2, 4):
        raise UnsupportedModule(
            f"{name}: expected one, two or four times the channels on the smaller side, got {4 / run:g} times as many"
        )
    first = [place // run for place in range(4)]
    return Squares(channels, (first[0], first[1], first[2], first[3]), 4 // run)
