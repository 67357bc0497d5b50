"""Ops of the halves of a Wan 2.2 or Qwen-Image 2.1 autoencoder: Wan's, and units that have a shortcut beside them.

Modules are found by the original's names, so the host's own are read just as well as ours.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from ...exact.layer import UnsupportedModule
from ...exact.ops.beside import Beside
from ...exact.ops.squares import Gather, Spread
from ...exact.program import Op, Program
from ...exact.read import describe, require_children
from .program import read_row, wan_program
from .unit_layers import gather_squares, spread_squares

UNITS = ("Up_ResidualBlock", "Down_ResidualBlock")


def unit_program(coder: Any, *, before: Any = None, after: Any = None) -> Program:
    """The program of an Encoder3d or Decoder3d.

    Args:    coder: the module tree. before, after: 1x1 convolutions around it (conv2, conv1) or None.
    Raises:  UnsupportedModule, naming the module, for anything without a rule.
    """
    unit = partial(_unit, clips=taps_of(coder) > 1)
    return wan_program(coder, before=before, after=after, also=dict.fromkeys(UNITS, unit))


def taps_of(half: Any) -> int:
    """Frames that an encoder's or decoder's convolutions see; 0 for what is none."""
    kernel = getattr(getattr(half, "conv1", None), "kernel_size", (0,))
    return kernel[0]


def has_units(model: Any) -> bool:
    """Whether a model, ours or the host's, consists of them."""
    halves: list[Any] = [getattr(model, half, None) for half in ("encoder", "decoder")]
    rows = [getattr(half, name, None) for half in halves for name in ("downsamples", "upsamples")]
    kinds = {type(row[0]).__name__ for row in rows if row}
    return bool(kinds) and kinds <= {*UNITS}


def _unit(unit: Any, name: str, clips: bool) -> list[Op]:
    row = "upsamples" if hasattr(unit, "upsamples") else "downsamples"
    require_children(unit, name, {row, "avg_shortcut"})
    ops = read_row(getattr(unit, row), f"{name}.{row}")
    if unit.avg_shortcut is None:
        return ops
    return [Beside(tuple(ops), _shortcut(unit.avg_shortcut, f"{name}.avg_shortcut", clips))]


def _shortcut(layer: Any, name: str, clips: bool) -> Spread | Gather | None:
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
        return Spread(spread_squares(*channels, factors[0], clips=clips))
    squares, run = gather_squares(*channels, factors[0], clips=clips)
    return Gather(squares, channels[1], run)
