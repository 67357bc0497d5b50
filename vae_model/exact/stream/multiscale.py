"""Rows of a 1x1 convolution, and beside them, as further channels, what they are at larger scales."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ..extent import Extent
from ..layer import Conv
from .context import Context
from .source import Cost, MakeSource, Source


class MultiscaleSource(Source):
    """(C, n, W) -> ((1 + s) * P, n, W): P projected channels, then for each of s scales a convolution of every channel
    and one of the groups of channels of each pixel."""

    whole = True

    def __init__(
        self, context: Context, convs: tuple[Conv, ...], top: int, bottom: int, source: MakeSource, source_size: Extent
    ) -> None:
        """`convs`: the projection, then two for each scale; none has a bias."""
        self.projection, self.scales = convs[0], list(zip(convs[1::2], convs[2::2], strict=True))
        self.halo = max((conv.pad_before for conv, _ in self.scales), default=0)
        place = context.share.place(source_size.height)
        self._first_row, self._last_row = -place.offset, place.whole - place.offset
        if not self.halo:  # without a border of its own it may be asked for rows of the other end, too
            self._first_row, self._last_row = -(2**62), 2**62
        first, end = max(self._first_row, top - self.halo), min(self._last_row, bottom + self.halo)
        self.source = source(first, end)
        self._window_size = source_size._replace(channels=self.projection.out_channels)
        size = self._window_size._replace(channels=(1 + len(self.scales)) * self.projection.out_channels)
        super().__init__(context, size, top, bottom, self.source)
        rows = self._window_size._replace(height=bottom - top)
        self.work += sum(conv.flops(context.batch, rows) for conv in convs)
        self.weight_bytes = context.dtype.itemsize * sum(
            conv.in_channels // conv.groups * conv.out_channels * conv.kernel**2 for conv in convs
        )
        self.window_row_bytes = context.row_bytes(self._window_size)
        self._convs = convs
        self._weights: list[Tensor] | None = None
        self._carried: Tensor | None = None

    def take(self, bottom: int) -> list[Tensor]:
        if bottom <= self.at:
            return []
        self._weights = self._weights or [self.context.conv_weights(conv)[0] for conv in self._convs]
        _, *weights = self._weights
        rows, halo, channels = bottom - self.at, self.halo, self.projection.out_channels
        window = self._window(bottom, self._weights[0])
        self._carried = window[:, :, rows:].clone() if halo and bottom < self.bottom else None
        self.at = bottom
        if not self.scales:
            return [window]
        out = self.context.strip(self.size, rows)
        out[:, :channels] = window[:, :, halo : halo + rows]
        for number, (wide, mix) in enumerate(self.scales):
            pad, first = wide.pad_before, (1 + number) * channels
            part = window[:, :, halo - pad : halo + rows + pad]
            part = functional.conv2d(part, weights[2 * number], padding=(0, pad), groups=wide.groups)
            out[:, first : first + channels] = functional.conv2d(part, weights[2 * number + 1], groups=mix.groups)
            del part
        return [out]

    def _window(self, bottom: int, weight: Tensor) -> Tensor:
        """Projected rows at - halo .. bottom + halo, zeros outside of the image."""
        first, end = self.at - self.halo, bottom + self.halo
        pieces = self.source.take(min(self._last_row, end))
        window = self.context.strip(self._window_size, end - first)
        row = max(0, self._first_row - first) if self._carried is None else self._carried.shape[2]
        if self._carried is None:
            window[:, :, :row].zero_()
        else:
            window[:, :, :row] = self._carried
            self._carried = None
        while pieces:  # each piece is let go as soon as it is in the window
            piece = pieces.pop(0)
            window[:, :, row : row + piece.shape[2]] = functional.conv2d(piece, weight)
            row += piece.shape[2]
            del piece
        window[:, :, row:].zero_()
        return window

    def _cost(self, top: int, bottom: int) -> Cost:
        halo, rows, begun = self.halo, bottom - top, top > self.top
        begin = min(self._last_row, top + halo) if begun else self.source.top
        end = min(self._last_row, bottom + halo)
        source, weights = self.source.cost(begin, end), self.weight_bytes
        carry = 2 * halo * self.window_row_bytes if bottom < self.bottom else 0
        stands = carry + weights + source.stands
        if not rows:
            return Cost(0, 0, stands, source.parked, (0, 0))
        held, window = rows * self.row_bytes, (rows + 2 * halo) * self.window_row_bytes
        filling = source.held + window + (end - begin) * self.window_row_bytes
        making = window + held + 2 * rows * self.window_row_bytes if self.scales else 0
        peak = max(source.peak, filling, making)
        before, rest = source.first
        opening = max(before, rest + weights + max(filling, carry + making)), rest + weights + carry
        return Cost(peak, held, stands, source.parked, opening)
