"""Ops of TAEHV's halves: convolutions, blocks that recall the frame before, and frames that lie in channels.

The host's own modules have the same names and are read just as well. Growing frames and enlarging them change places:
a 1x1 convolution gives each of four equal pixels the same, so it runs on the one that they are made of.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from torch import nn

from ...exact.layer import Conv, Recalling, Reordered, UnsupportedModule
from ...exact.ops.convolve import Convolve
from ...exact.ops.reframe import Reframe
from ...exact.ops.squares import PIXEL_SHUFFLE, Gather, Spread, pixels_first, pixels_last
from ...exact.ops.tiny_block import TinyBlock
from ...exact.ops.upsample import Upsample
from ...exact.program import Op, Program, make_program
from ...exact.read import describe, read_conv, require_children, require_plain
from ...exact.stream.reframed import Reframing
from ...exact.stream.squares import Squares
from ..coder import all_parts_of

_SIXTEEN = tuple(
    16 * c + 4 * (2 * outer_y + y) + 2 * outer_x + x
    for outer_y in range(2)
    for outer_x in range(2)
    for c in range(3)
    for y in range(2)
    for x in range(2)
)
"""Channels of squares of 4x4 pixels in the order in which they lie in squares of squares."""
_OUTER = Squares(12, (0, 12, 24, 36))


def decoder_program(layers: nn.Sequential, patch: int) -> Program:
    """The program of a decoder, behind its first layer, 3 tanh(x / 3).

    Raises:  UnsupportedModule, naming the module, for anything without a rule.
    """
    with all_parts_of(layers):
        require_plain(layers)
        row: list[Any] = list(layers)
        strides = [int(layer.stride) for layer in row if _is(layer, "TGrow")]
        ops: list[Op] = [_activated(row, 1, "decoder")]
        at, grown = 3, 0
        while at < len(row) - 3:
            layer, name = row[at], f"decoder.{at}"
            if _is(layer, "MemBlock"):
                ops.append(_block(layer, name))
                at += 1
                continue
            _require(layer, name, "Upsample")
            if layer.scale_factor != 2 or layer.mode != "nearest":
                raise UnsupportedModule(f"{name}: expected nearest x2, got {layer}")
            grow, name = row[at + 1], f"decoder.{at + 1}"
            _require(grow, name, "TGrow")
            grown += 1
            # Nothing behind the last one recalls a frame, so those that are left out need not be made any further.
            drop = _product(strides) - 1 if grown == len(strides) else 0
            ops.append(Convolve(read_conv(grow.conv, f"{name}.conv", kernel=1, padding=0)))
            if grow.stride > 1 or drop:
                ops.append(Reframe(Reframing(split=int(grow.stride), drop=drop)))
            ops.append(Upsample(read_conv(row[at + 2], f"decoder.{at + 2}")))
            at += 3
        return _with_pixels_last(ops, row, at, patch)


def _with_pixels_last(ops: list[Op], row: list[Any], at: int, patch: int) -> Program:
    """An activation behind the last upsample, a convolution, and the squares that lie in its channels."""
    if at != len(row) - 2:
        raise UnsupportedModule(f"decoder.{at}: expected an activation and a convolution, got other layers")
    *first, upsample = ops
    assert isinstance(upsample, Upsample)
    last = read_conv(row[at + 1], f"decoder.{at + 1}")
    last = Reordered(**_fields(last), outputs=_SIXTEEN) if patch == 4 else last
    after = _activation(row[at], f"decoder.{at}")
    program = make_program([*first, replace(upsample, after=after), Convolve(last)])
    if patch == 4:
        program = replace(program, ops=(*program.ops, Spread(_OUTER, begins_level=False)), out_channels=12)
    return program if patch == 1 else pixels_last(program, PIXEL_SHUFFLE)


def encoder_program(layers: nn.Sequential, patch: int) -> Program:
    """The program of an encoder; UnsupportedModule likewise."""
    with all_parts_of(layers):
        require_plain(layers)
        row: list[Any] = list(layers)
        strides = [int(layer.stride) for layer in row if _is(layer, "TPool")]
        first = _activated(row, 0, "encoder")
        if patch == 4:
            first = replace(first, conv=Reordered(**_fields(first.conv), inputs=_SIXTEEN))
        ops: list[Op] = [first]
        for at, layer in enumerate(row[2:-1], 2):
            name = f"encoder.{at}"
            if _is(layer, "MemBlock"):
                ops.append(_block(layer, name))
            elif _is(layer, "TPool"):
                ops += [Reframe(Reframing(join=int(layer.stride)))] * (layer.stride > 1)
                ops.append(Convolve(read_conv(layer.conv, f"{name}.conv", kernel=1, padding=0)))
            else:
                ops.append(Convolve(read_conv(layer, name, stride=2)))
        ops.append(Convolve(read_conv(row[-1], f"encoder.{len(row) - 1}")))
        program = make_program(ops)
        program = replace(program, ops=(Reframe(Reframing(whole=_product(strides))), *program.ops))
        if patch == 4:
            gather = Gather(_OUTER, 48)
            program = replace(program, ops=(gather, *program.ops), in_channels=12)
        return program if patch == 1 else pixels_first(program, PIXEL_SHUFFLE)


def _block(block: Any, name: str) -> TinyBlock:
    require_children(block, name, {"conv", "skip", "act"})
    first, inner, second, other, third = block.conv
    if not isinstance(block.skip, nn.Identity):
        raise UnsupportedModule(f"{name}.skip: expected none, got {describe(block.skip)}")
    conv = read_conv(first, f"{name}.conv.0")
    found: dict[str, Any] = {**_fields(conv), "in_channels": conv.in_channels // 2, "taps": 2}
    kinds = {_activation(layer, name) for layer in (inner, other, block.act)}
    if len(kinds) > 1:
        raise UnsupportedModule(f"{name}: expected one activation, got {', '.join(sorted(kinds))}")
    three = Recalling(**found), read_conv(second, f"{name}.conv.2"), read_conv(third, f"{name}.conv.4")
    activation = kinds.pop()
    return TinyBlock(three, activation, None, activation, None)


def _activated(row: list[Any], at: int, half: str) -> Convolve:
    return Convolve(read_conv(row[at], f"{half}.{at}"), after=_activation(row[at + 1], f"{half}.{at + 1}"))


def _activation(layer: Any, name: str) -> str:
    if type(layer) is nn.ReLU:
        return "relu"
    if type(layer) is nn.LeakyReLU and layer.negative_slope == 0.2:
        return "leaky_relu"
    raise UnsupportedModule(f"{name}: expected ReLU, or LeakyReLU of 0.2, got {describe(layer)}")


def _fields(conv: Conv) -> dict[str, Any]:
    return {field.name: getattr(conv, field.name) for field in fields(Conv)}


def _is(layer: Any, kind: str) -> bool:
    return type(layer).__name__ == kind


def _require(layer: Any, name: str, kind: str) -> None:
    if not _is(layer, kind):
        raise UnsupportedModule(f"{name}: expected {kind}, got {describe(layer)}")


def _product(numbers: list[int]) -> int:
    product = 1
    for number in numbers:
        product *= number
    return product
