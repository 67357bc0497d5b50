"""Attention within every frame of a clip: one frame after the other, so that keys and values of one alone stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...attention.streamed import attention_bytes, linear
from ..layer import Conv
from ..memory.spill import Parked
from ..stream.context import Context, Fill
from ..stream.passes import Check
from ..stream.plane import Plane
from ..stream.tokens import attend, normalised, strip_bounds


class FramesAttentionPass:
    """x + proj_out(attention(norm(x))) in place, in every strip of a plane."""

    def __init__(
        self, context: Context, layers: tuple[Conv, ...], level: int, plane: Plane, make_fill: Callable[[], Fill]
    ) -> None:
        """`layers`: q, k, v and proj_out."""
        self.context, self.layers, self.level, self.plane, self.make_fill = context, layers, level, plane, make_fill
        self.name = layers[3].name
        size = plane.size
        self.frames, self.channels, self.tokens = size.frames, size.channels, size.height * size.width

    def run(self, check: Check, report: Callable[[int], None]) -> None:
        """`report` gets the operations done with each frame."""
        context, fill = self.context, self.make_fill()
        q, k, v, proj_out = (context.conv_weights(conv) for conv in self.layers)
        like = {"dtype": context.dtype, "device": context.device}
        keys, values = (torch.empty((1, self.tokens, self.channels), **like) for _ in range(2))  # pyright: ignore
        work, width, bounds = self.work, self.plane.size.width, strip_bounds(self.plane)
        for frame in range(self.frames):
            for index, (top, bottom) in enumerate(bounds):
                check()
                tokens = normalised(context, fill, self._read(index, frame))
                place = slice(top * width, bottom * width)
                keys[:, place], values[:, place] = linear(tokens, *k), linear(tokens, *v)
                del tokens
            for index in range(len(bounds)):
                check()
                x = self._read(index, frame)
                tokens = linear(normalised(context, fill, x), *q)
                result = linear(attend(context, tokens, keys, values), *proj_out)
                del tokens
                x += result.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
                self._write(index, frame, x)
                del x, result
            report(work * (frame + 1) // self.frames - work * frame // self.frames)
        if context.spill is not None:
            context.spill.settle()

    def _read(self, index: int, frame: int) -> Tensor:
        """(1, C, rows, W) of a strip: a view, or its copy on the device."""
        stored = self.plane.get(index)
        if not isinstance(stored, Parked):
            return stored[frame : frame + 1]
        assert self.context.spill is not None
        return self.context.spill.arrived(*self.context.spill.fetch(stored.image(frame)))

    def _write(self, index: int, frame: int, x: Tensor) -> None:
        stored = self.plane.get(index)
        if isinstance(stored, Parked):
            assert self.context.spill is not None
            self.context.spill.rewrite(stored, frame, x)

    # -- sizes -----------------------------------------------------------------------------------------------------

    @property
    def work(self) -> int:
        """Floating point operations."""
        products = 4 * self.tokens * self.tokens * self.channels
        return self.frames * (products + sum(2 * self.tokens * c.in_channels * c.out_channels for c in self.layers))

    @property
    def moved_bytes(self) -> int:
        """Bytes copied to host memory and back: read twice, written once."""
        return 3 * self.plane.host_bytes()

    @property
    def host_bytes(self) -> int:
        """Of the plane's strips."""
        return self.plane.host_bytes()

    def peaks(self) -> Iterator[int]:
        """Keys and values of a frame, and what a strip of its queries takes."""
        rows = min(self.plane.size.height, self.plane.strip_rows)
        strip = rows * self.plane.row_bytes // self.frames
        peak = self.plane.device_bytes(0, self.plane.count) + 2 * self.context.plane_bytes(
            self.plane.size._replace(frames=1)
        )
        waiting = 2 * strip if self.plane.device_share < 1 else 0
        dtype, kind = self.context.dtype, self.context.device.type
        fused = self.context.fused_attention(self.channels)
        tokens = rows * self.plane.size.width
        yield (
            peak
            + waiting
            + 2 * strip
            + attention_bytes(tokens, self.tokens, self.channels, dtype, kind, fused=fused, batch=1)
        )
