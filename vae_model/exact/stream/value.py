"""Activations on their way through a program: stored in a plane, or computed whenever they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..extent import Extent
from .moments import Moments
from .plane import Plane
from .source import MakeSource, PlaneSource, Source


class OpenSource(Protocol):
    """How to read an activation: (top, bottom, last) -> rows; `last` frees what was stored of it behind the reader."""

    def __call__(self, top: int, bottom: int, last: bool) -> Source: ...


@dataclass
class Value:
    """An activation: stored in a plane or computed whenever it is read; with the moments that the next norm needs."""

    size: Extent
    rows: OpenSource
    moments: Moments | None = None
    plane: Plane | None = None

    def last(self, top: int, bottom: int) -> Source:
        """Read it for the last time."""
        return self.rows(top, bottom, True)

    def again(self, top: int, bottom: int) -> Source:
        """Read it and keep it."""
        return self.rows(top, bottom, False)

    def every_row(self) -> Source:
        """All of its rows, kept."""
        return self.rows(0, self.size.height, False)

    def recipe(self, last: bool) -> MakeSource:
        """`last` or `again`."""
        return self.last if last else self.again


def stored(plane: Plane) -> Value:
    """What a plane holds."""

    def read(top: int, bottom: int, last: bool) -> Source:
        return PlaneSource(plane, top, bottom, consume=last)

    return Value(plane.size, read, plane=plane)
