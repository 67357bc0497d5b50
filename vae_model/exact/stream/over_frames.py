"""Rows whose frames are mixed: no row beyond the strip is looked at, and no frame beyond the group."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from ..layer import TimeConv
from .context import Context, Fill
from .fill import copy_in
from .source import Cost, Source

MakeFill = Callable[[], Fill]


def frames_as_channels(context: Context, conv: TimeConv) -> tuple[Tensor, Tensor | None]:
    """Weight (out, kernel * C, 1, 1) and bias of a convolution over frames that lie behind each other as channels."""
    weight, bias = context.weights(conv.module, context.empty(0, 0, 0, 0))  # (out, C, kernel, 1, 1)
    weight = weight.flatten(2).transpose(1, 2).flatten(1)[:, :, None, None]
    return weight.contiguous(memory_format=context.memory_format), bias


class TimeConvolvedSource(Source):
    """A convolution over the frames, with what stands before it, times `share`.

    The frames that one result needs lie behind each other as channels, so it is one 1x1 convolution, rounded once.
    """

    whole = True

    def __init__(
        self,
        context: Context,
        conv: TimeConv,
        source: Source,
        make_fill: MakeFill | None = None,
        share: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(context, source.size, source.top, source.bottom, source)
        self.work += conv.flops(context.batch, self.size._replace(height=self.bottom - self.top))
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
        return copy_in if self.make_fill is None else self.make_fill(), *frames_as_channels(self.context, self.conv)

    def _window(self, pieces: list[Tensor], rows: int, fill: Fill) -> Tensor:
        """(T, kernel * C, rows, W): part k holds frame t + k - kernel // 2, zeros where there is none."""
        kernel, channels, frames = self.conv.kernel, self.conv.channels, self.context.batch
        window = self.context.empty(frames, kernel * channels, rows, self.size.width)
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

    def _cost(self, top: int, bottom: int) -> Cost:
        source, held = self.source.cost(top, bottom), (bottom - top) * self.row_bytes
        window = self.conv.kernel * held
        weight_bytes = self.conv.kernel * self.conv.channels**2 * self.context.dtype.itemsize
        peak = max(source.peak, source.held + window, window + held)
        return Cost(peak, held, source.stands + weight_bytes, source.parked)
