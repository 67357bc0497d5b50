"""Attention without softmax: what all positions have in common are sums, which rows add to, and are then applied to.

Of every group of channels: sum over all positions of v relu(k)^T and of relu(k); the result at a position is the first
times relu(q), divided by the second times relu(q). Products are in float32 or better.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...kernels.profile import profile_of
from .context import Context
from .moments import CHUNK_ELEMENTS
from .source import Cost, Source


class KeyValueSums:
    """Rows may come in any order, once each. Added up in float64 where there is any."""

    def __init__(self, context: Context, groups: int, dim: int) -> None:
        """`groups`: of channels, each keys and then values of `dim` channels."""
        self.context, self.groups, self.dim = context, groups, dim
        self.wide = torch.promote_types(context.dtype, torch.float32)
        self.kept = torch.float64 if profile_of(context.device.type).channel_moments else self.wide
        self._sums: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Of the sums."""
        return self.context.batch * self.groups * (self.dim + 1) * self.dim * self.kept.itemsize

    def add(self, rows: Tensor) -> None:
        """Take in keys and values (B, G * 2d, n, W); they are overwritten."""
        groups, dim = self.groups, self.dim
        if self._sums is None:
            shape = (len(rows), groups, dim + 1, dim)
            self._sums = torch.zeros(shape, dtype=self.kept, device=rows.device)
        tokens = rows.view(len(rows), groups, 2 * dim, -1)  # (B, G, 2d, N)
        at_once = max(1, CHUNK_ELEMENTS // (2 * groups * dim))
        for image, sums in zip(tokens, self._sums, strict=True):
            for part in image.split(at_once, dim=2):
                keys, values = part.to(self.wide).split(dim, dim=1)  # (G, d, n)
                keys.relu_()
                sums[:, :dim] += torch.bmm(values, keys.transpose(1, 2))
                sums[:, dim] += keys.sum(dim=2)
                del keys, values  # else they live on beside the next part's

    def add_bytes(self, elements: int, itemsize: int) -> int:
        """Of the sums, of a part's, and of the copies of 16-bit values."""
        return 2 * self.bytes + (4 * min(CHUNK_ELEMENTS, elements) if itemsize <= 2 else 0)

    def as_numbers(self) -> Tensor:
        """The sums of own rows: B * G * (d + 1) * d float64 in main memory."""
        assert self._sums is not None  # every rank has rows
        return self._sums.flatten().cpu().double()

    def become_numbers(self, by_rank: Sequence[Tensor]) -> None:
        """Be those of all ranks' rows."""
        assert self._sums is not None
        self._sums = sum(by_rank, torch.zeros_like(by_rank[0])).view(self._sums.shape).to(self._sums)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """Of values and keys (B, G, d, d), of keys alone (B, G, 1, d), in float32 or better."""
        assert self._sums is not None
        sums = self._sums.to(self.wide)
        return sums[:, :, : self.dim], sums[:, :, self.dim :]


class AttendedSource(Source):
    """Queries become results, in place."""

    whole = True

    def __init__(self, context: Context, queries: Source, sums: KeyValueSums, eps: float) -> None:
        """`queries`: as one fresh tensor (B, G * d, n, W) at a time."""
        super().__init__(context, queries.size, queries.top, queries.bottom, queries)
        self.queries, self.sums, self.eps = queries, sums, eps
        rows = self.bottom - self.top
        self.work += 2 * context.batch * rows * self.size.width * self.size.channels * (sums.dim + 1)
        self._matrices: tuple[Tensor, Tensor] | None = None

    def take(self, bottom: int) -> list[Tensor]:
        if bottom <= self.at:
            return []
        self._matrices = self._matrices or self.sums.matrices()
        (rows,) = self.queries.take(bottom)
        self.at = bottom
        tokens = rows.view(len(rows), self.sums.groups, self.sums.dim, -1)  # (B, G, d, N)
        for image, products, keys in zip(tokens, *self._matrices, strict=True):
            for part in image.split(self._at_once, dim=2):
                queries = part.to(self.sums.wide).relu_()
                made, share = torch.bmm(products, queries), torch.bmm(keys, queries)
                part.copy_(made.div_(share.add_(self.eps)))
                del queries, made, share  # else they live on beside the next part's
        return [rows]

    @property
    def _at_once(self) -> int:
        """Positions of a part."""
        return max(1, profile_of(self.context.device.type).part_elements // self.size.channels)

    def _cost(self, top: int, bottom: int) -> Cost:
        source, sums = self.queries.cost(top, bottom), self.sums
        part = min(self._at_once, (bottom - top) * self.size.width)
        wide = self.size.channels * (1 + (sums.wide != self.context.dtype)) + sums.groups
        making, stands = source.held + part * wide * sums.wide.itemsize, 2 * sums.bytes
        before, rest = source.first
        opening = max(before + stands, rest + stands + making), rest + stands
        return Cost(max(source.peak, making), source.held, source.stands + stands, source.parked, opening)
