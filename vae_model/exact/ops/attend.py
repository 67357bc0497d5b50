"""Attention: keys and values of all rows once, then queries strip by strip, added to the plane's strips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...attention.streamed import attention_bytes, linear, streamed_attention, streaming_bytes
from ..extent import Extent
from ..layer import Conv, Norm, PixelNorm
from ..memory.spill import Parked
from ..program import Op
from ..stream.context import Context, Fill
from ..stream.moments import Moments
from ..stream.passes import Check
from ..stream.plane import Plane
from ..stream.ranks import Tokens, block_rows
from ..stream.source import PlaneSource
from ..stream.tokens import attend, normalised, strip_bounds
from ..stream.value import Value, stored
from ..stream.walk import Walk
from .attend_frames import FramesAttentionPass


class Block(NamedTuple):
    """Keys and values of one strip, (B, n, C) each, on the device or parked."""

    keys: Tensor | Parked
    values: Tensor | Parked


@dataclass(frozen=True)
class Attend(Op):
    """x + proj_out(attention(norm(x))) over all positions of an image or a frame, one head."""

    before: Norm | PixelNorm
    q: Conv
    k: Conv
    v: Conv
    proj_out: Conv

    at_once = True
    shares_rows = True

    @property
    def name(self) -> str:
        return self.proj_out.name

    @property
    def norm(self) -> Norm | PixelNorm:
        return self.before

    @property
    def layers(self) -> tuple[Conv, ...]:
        """Its four 1x1 convolutions."""
        return self.q, self.k, self.v, self.proj_out

    def extent(self, source: Extent) -> Extent:
        return source

    def flops(self, source: Extent, batch: int) -> int:
        tokens = source.height * source.width
        products = batch * source.frames * 4 * tokens * tokens * source.channels
        return products + sum(conv.flops(batch, source) for conv in self.layers)

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        assert value.plane is not None  # a plane always stands before what reads all at once
        if value.size.frames > 1 and walk.context.share.count == 1:
            fill = walk.fill(value, self.before, level, None)
            walk.perform(FramesAttentionPass(walk.context, self.layers, level, value.plane, fill))
            return Value(value.size, stored(value.plane).rows, None, value.plane)
        moments = None if groups is None else Moments(groups)
        target = walk.plane(value.size, level)
        fill = walk.fill(value, self.before, level, None)
        stream = walk.schedule[level].stream_attention
        walk.perform(AttentionPass(walk.context, self, level, value.plane, target, moments, fill, stream))
        return Value(value.size, stored(target).rows, moments, target)


class AttentionPass:
    """x + proj_out(attention(norm(x))), from one plane into another; the first is freed strip by strip."""

    def __init__(
        self,
        context: Context,
        op: Attend,
        level: int,
        source: Plane,
        target: Plane,
        moments: Moments | None,
        make_fill: Callable[[], Fill],
        stream: bool,
    ) -> None:
        self.context, self.op, self.level = context, op, level
        self.source, self.target, self.moments, self.make_fill = source, target, moments, make_fill
        self.stream = stream
        self.name = op.proj_out.name
        self.height, self.width = source.size.height, source.size.width
        self.place = context.share.place(self.height)
        self._fused = context.fused_attention(source.size.channels)
        self._all_rows = source.size._replace(height=self.place.whole)

    def run(self, check: Check, report: Callable[[int], None]) -> None:
        """Both sweeps. `report` gets the operations done with each strip."""
        fill = self.make_fill()
        blocks, whole = self._keys_and_values(fill, check)
        q, proj_out = self.context.conv_weights(self.op.q), self.context.conv_weights(self.op.proj_out)
        rows = PlaneSource(self.source, 0, self.height, consume=True)
        work, done = self.work, 0
        for index, (_, bottom) in enumerate(strip_bounds(self.source)):
            check()
            (x,) = rows.take(bottom)
            tokens = linear(normalised(self.context, fill, x), *q)
            if whole is not None:
                tokens = attend(self.context, tokens, *whole)
            else:
                tokens = streamed_attention(tokens, self._fetched(blocks), check)
            result = linear(tokens, *proj_out)
            del tokens
            strip = self._as_strip(result, x)
            del result, x
            if self.moments is not None:
                self.moments.add(strip)
            self.target.put(index, strip)
            del strip
            report(work * bottom // self.height - done)
            done = work * bottom // self.height
        for block in blocks:
            self._forget(block)
        self.context.ranks.merge([] if self.moments is None else [self.moments])
        if self.context.spill is not None:
            self.context.spill.settle()

    def _keys_and_values(self, fill: Fill, check: Check) -> tuple[list[Block], tuple[Tensor, Tensor] | None]:
        """All keys and values: as two whole tensors, or as blocks where they are streamed."""
        context, channels = self.context, self.source.size.channels
        weights = [context.conv_weights(conv) for conv in (self.op.k, self.op.v)]
        blocks: list[Block] = []
        whole: tuple[Tensor, Tensor] | None = None
        if not self.stream:
            shape = (self.source.images, self.place.whole * self.width, channels)
            like = {"dtype": context.dtype, "device": context.device}
            whole = (torch.empty(shape, **like), torch.empty(shape, **like))  # pyright: ignore
        rows = PlaneSource(self.source, 0, self.height, consume=False)
        for top, bottom in strip_bounds(self.source):
            check()
            (x,) = rows.take(bottom)
            tokens = normalised(self.context, fill, x)
            if whole is not None:
                for target, (weight, bias) in zip(whole, weights, strict=True):
                    target[:, self._tokens(top, bottom)] = linear(tokens, weight, bias)
            else:
                assert context.spill is not None
                keys, values = (context.spill.park(linear(tokens, weight, bias)) for weight, bias in weights)
                blocks.append(Block(keys, values))
        self._gather(blocks, whole)
        return blocks, whole

    def _tokens(self, top: int, bottom: int) -> slice:
        """Where own rows stand among the tokens of all rows."""
        return slice((self.place.offset + top) * self.width, (self.place.offset + bottom) * self.width)

    def _gather(self, blocks: list[Block], whole: tuple[Tensor, Tensor] | None) -> None:
        """Add the keys and values of the other ranks, and give them ours."""
        spill, mine = self.context.spill, list(blocks)

        def own(top: int, bottom: int) -> tuple[Tensor, Tensor]:
            if whole is not None:
                return whole[0][:, self._tokens(top, bottom)], whole[1][:, self._tokens(top, bottom)]
            return self._parked_rows(mine, 0, top, bottom), self._parked_rows(mine, 1, top, bottom)

        def take(part: Tokens) -> None:
            if whole is None:
                assert spill is not None
                blocks.append(Block(spill.park(part.keys), spill.park(part.values)))
                return
            rows = slice(part.top * self.width, part.bottom * self.width)
            whole[0][:, rows], whole[1][:, rows] = part.keys, part.values

        self.context.ranks.tokens(self.source, own, take)

    def _parked_rows(self, blocks: list[Block], number: int, top: int, bottom: int) -> Tensor:
        """Keys (number 0) or values of own rows, out of the strips that wait."""
        rows, parts = self.source.strip_rows, list[Tensor]()
        while top < bottom:
            first = top // rows * rows
            end = min(bottom, first + rows)
            parked = blocks[top // rows][number]
            assert isinstance(parked, Parked)
            parts.append(parked.settled()[:, (top - first) * self.width : (end - first) * self.width])
            top = end
        return torch.cat(parts, dim=1).to(self.context.device)

    def _as_strip(self, tokens: Tensor, x: Tensor) -> Tensor:
        """x plus tokens (B, rows * W, C), in the run's memory order."""
        strip = tokens.unflatten(1, (x.shape[2], x.shape[3])).permute(0, 3, 1, 2)  # (B, C, rows, W)
        strip += x
        return strip if self.context.channels_last else strip.contiguous()

    def _fetched(self, blocks: list[Block]) -> Iterator[tuple[Tensor, Tensor]]:
        """The blocks on the device, each brought back while the one before it is used."""
        spill = self.context.spill
        assert spill is not None
        coming = [spill.fetch(parked) for parked in blocks[0] if isinstance(parked, Parked)]
        for index in range(len(blocks)):
            keys, values = (spill.arrived(*arrival) for arrival in coming)
            if index + 1 < len(blocks):
                coming = [spill.fetch(parked) for parked in blocks[index + 1] if isinstance(parked, Parked)]
            yield keys, values
            del keys, values

    def _forget(self, block: Block) -> None:
        for parked in block:
            if isinstance(parked, Parked):
                assert self.context.spill is not None
                self.context.spill.forget(parked)

    # -- sizes -----------------------------------------------------------------------------------------------------

    @property
    def work(self) -> int:
        """Floating point operations."""
        tokens, channels = self.height * self.width, self.source.size.channels
        products = 4 * tokens * self.place.whole * self.width * channels
        return self.source.images * (
            products + sum(2 * tokens * c.in_channels * c.out_channels for c in self.op.layers)
        )

    @property
    def moved_bytes(self) -> int:
        """Bytes copied to host memory and back: every strip of queries fetches all keys and values."""
        keys_and_values = 2 * self.context.plane_bytes(self._all_rows) if self.stream else 0
        return keys_and_values * (1 + self.source.count) + 3 * self.source.host_bytes()

    def peaks(self) -> Iterator[int]:
        """Of a plane that is replaced strip by strip, the larger of the two counts."""
        rows = min(self.height, self.source.strip_rows)
        strip = rows * self.source.row_bytes
        peak = self.source.device_bytes(0, self.source.count) + (3 * strip if self.source.device_share < 1 else 0)
        peak += self._workspace(rows * self.width)
        if self.place.whole > self.height:
            peak += 3 * min(self.place.whole, block_rows(self.source)) * self.source.row_bytes  # on the wire
        if self.stream:
            yield peak + 4 * strip + strip  # blocks: one being used, one coming; then the queries
        else:
            yield peak + 2 * self.context.plane_bytes(self._all_rows) + 2 * strip

    @property
    def host_bytes(self) -> int:
        """Host bytes of keys, values and spilled strips."""
        return (2 * self.context.plane_bytes(self._all_rows) if self.stream else 0) + self.source.host_bytes()

    def _workspace(self, tokens: int) -> int:
        """Bytes beside the queries of a strip and the keys and values."""
        batch, channels, dtype = self.source.images, self.source.size.channels, self.context.dtype
        device_type = self.context.device.type
        if self.stream:
            return streaming_bytes(batch * tokens, batch * tokens, channels, dtype, device_type)
        keys = self.place.whole * self.width
        return attention_bytes(tokens, keys, channels, dtype, device_type, fused=self._fused, batch=batch)
