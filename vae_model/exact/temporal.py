"""Mixing the frames of a group, rows by rows: such steps look beyond no row, but their norms are over all frames."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional

from ..video import mix_share
from .computed import AddedRows, copy_in
from .context import Context
from .moments import Moments
from .passes import Sink
from .rows import Cost, PlaneRows, Rows
from .shared import Shared
from .spec import Norm
from .step import Size
from .temporal_program import TimeConv, TimeConvolve, TimeResidual
from .value import Value, norm_fill
from .windowed import Fill

MakeFill = Callable[[], Fill]


class TimeConvolvedRows(Rows):
    """A convolution over the frames, with what stands before it, times `share`.

    The frames that one result needs lie behind each other as channels, so it is one 1x1 convolution, rounded once.
    """

    whole = True

    def __init__(
        self,
        context: Context,
        conv: TimeConv,
        source: Rows,
        make_fill: MakeFill | None = None,
        share: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(context, source.size, source.top, source.bottom)
        self.conv, self.source, self.make_fill, self.share = conv, source, make_fill, share
        self._layer: tuple[Fill, Tensor, Tensor | None] | None = None

    def take(self, bottom: int) -> list[Tensor]:
        if bottom <= self.at:
            return []
        self._layer = self._layer or self._prepare()
        fill, weight, bias = self._layer
        pieces = self.source.take(bottom)
        window = self._window(pieces, bottom - self.at, fill)
        self.at = bottom
        out = functional.conv2d(window, weight, bias)
        return [out if self.share is None else out.mul_(self.share(out))]

    def _prepare(self) -> tuple[Fill, Tensor, Tensor | None]:
        like = self.context.empty(0, 0, 0)
        weight, bias = self.context.weights(self.conv.module, like)  # (C, C, kernel, 1, 1)
        weight = weight.flatten(2).transpose(1, 2).flatten(1)[:, :, None, None]  # (C, kernel * C, 1, 1)
        weight = weight.contiguous(memory_format=self.context.memory_format)
        return copy_in if self.make_fill is None else self.make_fill(), weight, bias

    def _window(self, pieces: list[Tensor], rows: int, fill: Fill) -> Tensor:
        """(T, kernel * C, rows, W): part k holds frame t + k - kernel // 2, zeros where there is none."""
        kernel, channels, frames = self.conv.kernel, self.conv.channels, self.context.batch
        window = self.context.empty(kernel * channels, rows, self.size.width)
        parts = window.split(channels, dim=1)
        middle, row = parts[kernel // 2], 0
        while pieces:  # each piece is let go as soon as it is in the window
            piece = pieces.pop(0)
            fill(middle[:, :, row : row + piece.shape[2]], piece)
            row += piece.shape[2]
            del piece
        for number, part in enumerate(parts):
            shift = number - kernel // 2
            first, last = max(0, -shift), frames - max(0, shift)  # frames whose source there is
            if shift:
                part[:first].zero_()
                part[max(0, last) :].zero_()
                if first < last:
                    part[first:last] = middle[first + shift : last + shift]
        return window

    def cost(self, top: int, bottom: int) -> Cost:
        source, out = self.source.cost(top, bottom), (bottom - top) * self.row_bytes
        window = self.conv.kernel * out
        return Cost(max(source.peak, source.held + window, window + out), out)

    def standing(self, top: int, bottom: int) -> int:
        weight_bytes = self.conv.kernel * self.conv.channels**2 * self.context.dtype.itemsize
        return self.source.standing(top, bottom) + weight_bytes

    def scratch_bytes(self) -> int:
        return self.source.scratch_bytes()

    def readers(self, bottom: int) -> list[tuple[PlaneRows, int]]:
        return self.source.readers(bottom)

    def work(self) -> int:
        rows = self.bottom - self.top
        return time_work(self.conv, self.context.batch, rows, self.size.width) + self.source.work()


def time_work(conv: TimeConv, batch: int, rows: int, width: int) -> int:
    """Floating point operations of so many rows of results."""
    return 2 * conv.kernel * conv.channels**2 * batch * rows * width


def walk_time_convolve(context: Context, step: TimeConvolve, value: Value, size: Size, level: int) -> Value:
    """The step's result, computed whenever it is read."""

    def read(top: int, bottom: int, last: bool) -> Rows:
        return TimeConvolvedRows(context, step.conv, (value.last if last else value.again)(top, bottom))

    return Value(size, read)


def walk_time_residual(
    context: Context,
    moments_of: Callable[[Value, Norm, int], Moments],
    perform: Callable[[str, int, list[Sink], Size], None],
    step: TimeResidual,
    value: Value,
    size: Size,
    level: int,
) -> Value:
    """One pass for the statistics of what is inside; the result is computed whenever it is read."""
    inner = Moments(step.norm2.groups)

    def over_frames(norm: Norm, moments: Moments) -> MakeFill:
        return lambda: norm_fill(context, norm, moments.over_images(), "silu")

    first, second = over_frames(step.norm1, moments_of(value, step.norm1, level)), over_frames(step.norm2, inner)
    hidden = partial(TimeConvolvedRows, context, step.conv1, make_fill=first)
    sweep = Sink(hidden(value.again(0, size.height)), moments=inner)
    perform(f"{step.conv1.name} (statistics)", level, [sweep], size)

    def share(like: Tensor) -> Tensor:
        return mix_share(step.block.mix_factor, step.block.merge_strategy, like)

    def read(top: int, bottom: int, last: bool) -> Rows:
        shared = Shared(context, size, value.last if last else value.again, lag=0)
        main = TimeConvolvedRows(context, step.conv2, hidden(shared.reader(top, bottom)), second, share)
        return AddedRows(main, shared.reader(top, bottom))

    return Value(size, read)
