"""Rows whose frames become more or fewer. The first frame of a clip is a picture of its own and stays as it is."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ..extent import Extent
from ..layer import TimeConv
from .context import Context
from .over_frames import frames_as_channels
from .source import Cost, Source


class TimeResampledSource(Source):
    """A convolution over the frames, whose results follow the first frame: no row beyond the strip is looked at.

    The frames that one result needs lie behind each other as channels, so it is one 1x1 convolution, rounded once.
    """

    whole = True

    def __init__(
        self, context: Context, conv: TimeConv, source: Source, size: Extent, every: int, continues: bool = False
    ) -> None:
        """`every`: frames of the source per result of the convolution. Of a result's channels the first part is one
        frame, the second the one behind it, where `size` has twice as many. `continues`: the first frame came before.
        """
        super().__init__(context, size, source.top, source.bottom, source)
        self.conv, self.source, self.every = conv, source, every
        self.first = 0 if continues else 1
        """Frames that stay as they are."""
        self.results = (source.size.frames - self.first) // every
        self.parts = (size.frames - self.first) // self.results
        """Frames that each of them is."""
        rows = Extent(conv.channels, self.bottom - self.top, size.width, self.results)
        self.work += self.parts * conv.flops(context.batch, rows)
        self._weights: tuple[Tensor, Tensor | None] | None = None

    def take(self, bottom: int) -> list[Tensor]:
        if bottom <= self.at:
            return []
        weight, bias = self._weights = self._weights or frames_as_channels(self.context, self.conv)
        rows, pieces = bottom - self.at, self.source.take(bottom)
        out = self.context.strip(self.size, rows)
        window = self._window(pieces, out)
        self.at = bottom
        made = functional.conv2d(window, weight, bias)
        del window
        for number, part in enumerate(made.chunk(self.parts, dim=1)):
            out[self.first + number :: self.parts] = part
        return [out]

    def _window(self, pieces: list[Tensor], out: Tensor) -> Tensor:
        """(results, kernel * C, rows, W); the first frames go to `out`."""
        kernel, channels = self.conv.kernel, self.conv.channels
        window = self.context.empty(self.results, kernel * channels, out.shape[2], self.size.width)
        row = 0
        while pieces:  # each piece is let go as soon as it is in the window
            piece = pieces.pop(0)
            rows = slice(row, row + piece.shape[2])
            out[: self.first, :, rows] = piece[: self.first]
            for number, part in enumerate(window[:, :, rows].split(channels, dim=1)):
                self._fill(part, piece, number, self.at + row)
            if self.context.past is not None and self.every == 1:
                self.context.past.keep(self.conv.name, self.source.size, kernel - 1, self.at + row, piece[self.first :])
            row += piece.shape[2]
            del piece
        return window

    def _fill(self, part: Tensor, x: Tensor, tap: int, top: int) -> None:
        """The frames that tap number `tap` of every result sees."""
        if self.every > 1:  # the window of the first result begins with the first frame
            part.copy_(x[tap :: self.every][: self.results])
            return
        before = self.conv.kernel - 1
        missing = min(self.results, before - tap)  # it does not see the first frame, but zeros
        if self.context.past is not None and self.first == 0:
            kept = self.context.past.before(self.conv.name, self.source.size, before, top, top + x.shape[2])
            part[:missing] = kept[tap : tap + missing]
        else:
            part[:missing].zero_()
        part[missing:] = x[self.first : self.first + self.results - missing]

    def _cost(self, top: int, bottom: int) -> Cost:
        source, rows = self.source.cost(top, bottom), bottom - top
        held = rows * self.row_bytes
        one = self.context.row_bytes(Extent(self.conv.channels, 1, self.size.width, self.results))
        window, made = rows * self.conv.kernel * one, rows * self.parts * one
        weight_bytes = self.parts * self.conv.kernel * self.conv.channels**2 * self.context.dtype.itemsize
        peak = max(source.peak, held + window + max(source.held, made))
        return Cost(peak, held, source.stands + weight_bytes, source.parked)
