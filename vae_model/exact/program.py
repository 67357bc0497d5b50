"""Programs as data: what an encoder or a decoder does, one op after the other, and the sizes in between.

An op answers for itself: what comes out of it, what it wants of its input, what it costs, and the passes and sources
that it takes. So nobody asks which kind of op it is; `ops/` has the kinds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, cast

from .extent import Extent
from .layer import Conv, Norm, PixelNorm, UnsupportedModule
from .schedule import LevelSchedule

if TYPE_CHECKING:
    from .stream.value import Value
    from .stream.walk import Walk


class Op(ABC):
    """One row of a program, from an activation to the next one. Kinds of ops are frozen dataclasses."""

    at_once: ClassVar[bool] = False
    """Whether it reads all of its input at once: a plane stands before it, and it makes one."""
    inner_plane: ClassVar[bool] = False
    """Whether an activation inside of it may be stored, or else computed twice."""
    turns: ClassVar[bool] = True
    """Whether it is the same with rows and columns in each other's places, but for the kernels of its convolutions."""
    shares_rows: ClassVar[bool] = False
    """Whether ranks can share its rows: it asks the others for rows, moments, keys and values alone."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The layer that makes its result."""

    @abstractmethod
    def extent(self, source: Extent) -> Extent:
        """The size of its result."""

    @abstractmethod
    def flops(self, source: Extent, batch: int) -> int:
        """Floating point operations in the ordinary run, a multiplication and an addition counted as two.

        Args:    batch: pictures or clips.
        """

    @abstractmethod
    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        """Add its passes and sources behind `value`; the result, stored or computed whenever it is read.

        Args:    level: of its result. groups: of the norm that wants moments of the result, None without one.
        """

    @property
    def norm(self) -> Norm | PixelNorm | None:
        """The norm that its input goes through first."""
        return None

    @property
    def groups(self) -> int | None:
        """Of the moments that it wants of its input."""
        return self.norm.groups if isinstance(self.norm, Norm) else None

    @property
    def upsamples(self) -> bool:
        """Whether another resolution level begins with its result, larger than its input."""
        return False

    @property
    def resamples(self) -> bool:
        """Whether another resolution level begins with its result."""
        return self.upsamples

    @property
    def streams(self) -> bool:
        """Whether it can follow without anything being stored."""
        return False

    @property
    def in_time(self) -> bool:
        """Whether it changes the frames of a clip: the first axis of what it gets is then that of the frames of one."""
        return False

    @property
    def twice(self) -> bool:
        """Whether it reads its input twice, for moments of something computed from it."""
        return False

    @property
    def convs(self) -> Sequence[Conv]:
        """Its convolutions that may look beyond the image's border."""
        return ()

    @property
    def continued(self) -> Op | None:
        """The same of frames that others came before; None where it needs more of these than `Past` keeps."""
        return None if self.in_time else self

    def past_elements(self, source: Extent) -> int:
        """Numbers that stay for the next part of a clip: for each convolution the last frames that go into it."""
        planes = source.height * source.width
        return sum(max(0, conv.taps - 1) * conv.in_channels * planes for conv in self.convs)

    def kept(self, schedule: LevelSchedule, following: Op, ends_level: bool) -> bool:
        """Whether its result becomes a plane, `following` being the next op."""
        return following.groups is not None or following.twice

    def turned(self) -> Op:
        """The same with rows and columns in each other's places."""
        assert is_dataclass(self)
        return replace(self, **{field.name: _turned(getattr(self, field.name)) for field in fields(self)})


@dataclass(frozen=True)
class Program:
    """An encoder or a decoder as ops, in order."""

    ops: tuple[Op, ...]
    in_channels: int
    out_channels: int
    continues: bool = False
    """Whether the frames of its inputs are those of a clip behind its first ones."""

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """The resolution level of every op's result, counted from 0 in the order they run."""
        levels: list[int] = []
        level = 0
        for index, op in enumerate(self.ops):
            level += op.resamples and index > 0
            levels.append(level)
        return tuple(levels)

    @cached_property
    def streams(self) -> bool:
        """Whether blocks need nothing stored."""
        return any(op.inner_plane for op in self.ops) and self._blocks_stream

    @cached_property
    def _blocks_stream(self) -> bool:
        return all(op.streams for op in self.ops if op.inner_plane)

    @property
    def level_count(self) -> int:
        """How many resolutions there are."""
        return self.levels[-1] + 1

    def level_ops(self, level: int) -> list[Op]:
        """The ops of one level."""
        return [op for op, at in zip(self.ops, self.levels, strict=True) if at == level]

    @cached_property
    def turned(self) -> Program | None:
        """The program of images with rows and columns in each other's places; None where there is none."""
        if not all(op.turns for op in self.ops):
            return None
        return replace(self, ops=tuple(op.turned() for op in self.ops))

    @cached_property
    def continued(self) -> Program | None:
        """The program of the later parts of a clip; None where it does not run part by part."""
        ops = [op.continued for op in self.ops]
        if not self.in_time or not self._blocks_stream or None in ops:
            return None
        return replace(self, ops=tuple(op for op in ops if op is not None), continues=True)

    def past_bytes(self, height: int, width: int, itemsize: int) -> int:
        """Bytes of what stays from part to part of a clip whose inputs have so many rows and columns."""
        extent, elements = Extent(self.in_channels, height, width), 0
        for op in self.ops:
            elements += op.past_elements(extent)
            extent = op.extent(extent)
        return elements * itemsize

    @cached_property
    def in_time(self) -> bool:
        """Whether it runs clips: inputs (T, C, H, W) are then the frames of one, else they are T pictures."""
        return any(op.in_time for op in self.ops)

    def batch_and_frames(self, images: int) -> tuple[int, int]:
        """What so many images along the first axis of an input are."""
        return (1, images) if self.in_time else (images, 1)

    def extent(self, height: int, width: int, frames: int = 1) -> Extent:
        """Of the result for an input of so many rows, columns and frames."""
        extent = Extent(self.in_channels, height, width, frames)
        for op in self.ops:
            extent = op.extent(extent)
        return extent

    def flops(self, shape: tuple[int, int, int, int]) -> int:
        """Operations of the ordinary run for an input (B, C, H, W), or (T, C, H, W) of a clip: upsampled planes are
        convolved at full size.
        """
        images, _, height, width = shape
        batch, frames = self.batch_and_frames(images)
        extent, total = Extent(self.in_channels, height, width, frames), 0
        for op in self.ops:
            total += op.flops(extent, batch)
            extent = op.extent(extent)
        return total


def _turned(part: Any) -> Any:
    """A part of an op with all of its convolutions turned."""
    if isinstance(part, Conv):
        return replace(part, turned=not part.turned)
    if isinstance(part, tuple):
        return tuple(map(_turned, cast("tuple[Any, ...]", part)))
    return part.turned() if isinstance(part, Op) else part


_ANY_SIZE = 1024
"""Rows and columns at which the channels of a program's result are asked for: every op can work at it."""


def make_program(ops: Sequence[Op]) -> Program:
    """The program of these ops, which begin with a convolution.

    Raises:  UnsupportedModule where circular convolutions stand beside others.
    """
    _require_one_border(ops)
    in_channels = ops[0].convs[0].in_channels
    extent = Extent(in_channels, _ANY_SIZE, _ANY_SIZE)
    for op in ops:
        extent = op.extent(extent)
    return Program(tuple(ops), in_channels, extent.channels)


def _require_one_border(ops: Sequence[Op]) -> None:
    """Refuse circular convolutions beside others: computed rows would not continue at the other end."""
    convs = [conv for op in ops for conv in op.convs if conv.kernel > 1 and conv.pad_before]
    other = next((conv for conv in convs if not conv.circular), None)
    if other is not None and any(conv.circular for conv in convs):
        raise UnsupportedModule(f"{other.name}: expected circular padding as elsewhere, got {other.mode}")
