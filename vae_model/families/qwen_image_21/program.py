"""Ops of the Qwen-Image 2.1 autoencoder's halves: Wan's, and the units that have a shortcut beside them.

Modules are found by the names of Wan 2.2, so the host's own are read just as well as ours.
"""

from __future__ import annotations

from typing import Any

from ...exact.layer import UnsupportedModule
from ...exact.ops.beside import Beside
from ...exact.ops.squares import Gather, Spread
from ...exact.program import Op, Program
from ...exact.read import describe, require_children
from ..wan.program import read_row, wan_program
from .layers import gather_squares, spread_squares

UNITS = ("Up_ResidualBlock", "Down_ResidualBlock")


def qwen_program(coder: Any, *, before: Any = None, after: Any = None) -> Program:
    """The program of an Encoder3d or Decoder3d.

    Args:    coder: the module tree. before, after: 1x1 convolutions around it (conv2, conv1) or None.
    Raises:  UnsupportedModule, naming the module, for anything without a rule.
    """
    return wan_program(coder, before=before, after=after, also=dict.fromkeys(UNITS, _unit))


def _unit(unit: Any, name: str) -> list[Op]:
    row = "upsamples" if hasattr(unit, "upsamples") else "downsamples"
    require_children(unit, name, {row, "avg_shortcut"})
    ops = read_row(getattr(unit, row), f"{name}.{row}")
    if unit.avg_shortcut is None:
        return ops
    return [Beside(tuple(ops), _shortcut(unit.avg_shortcut, f"{name}.avg_shortcut"))]


def _shortcut(layer: Any, name: str) -> Spread | Gather | None:
    """None where it hands on what went in."""
    kind, factors = describe(layer), (layer.factor_t, layer.factor_s)
    channels = (layer.in_channels, layer.out_channels)
    if kind not in ("DupUp3D", "AvgDown3D") or factors[0] not in (1, 2) or factors[1] not in (1, 2):
        raise UnsupportedModule(f"{name}: expected DupUp3D or AvgDown3D of factors 1 and 2, got {kind} of {factors}")
    if factors == (1, 1) and channels[0] == channels[1]:
        return None
    if factors[1] == 1:
        raise UnsupportedModule(f"{name}: expected a shortcut that halves or doubles both sides, got another")
    if kind == "DupUp3D":
        return Spread(spread_squares(*channels, factors[0]))
    squares, run = gather_squares(*channels, factors[0])
    return Gather(squares, channels[1], run)
