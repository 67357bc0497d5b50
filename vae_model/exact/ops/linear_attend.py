"""Linear attention over all positions: one sweep for the sums of keys and values, one that applies them to queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..extent import Extent
from ..layer import Chosen, Conv, RootNorm
from ..program import Op
from ..stream.added import AddedSource
from ..stream.linear_attention import AttendedSource, KeyValueSums
from ..stream.multiscale import MultiscaleSource
from ..stream.passes import Sink
from ..stream.per_pixel import PerPixelSource
from ..stream.pointwise import PointwiseSource
from ..stream.shared import Shared
from ..stream.source import MakeSource, Source
from ..stream.value import Value
from ..stream.walk import Walk

_ROLES = 3
"""Query, key, value: blocks of channels take turns."""


@dataclass(frozen=True)
class LinearAttend(Op):
    """x + norm(out(attention(x))). Every projection is computed once: keys and values first, then queries."""

    queries: tuple[Conv, ...]
    keys_values: tuple[Conv, ...]
    """As `chosen` makes them."""
    out: Conv
    after: RootNorm
    dim: int
    """Channels of a query, key or value."""
    eps: float

    shares_rows = True

    @property
    def name(self) -> str:
        return self.out.name

    @property
    def convs(self) -> tuple[Conv, ...]:
        return self.queries

    @property
    def twice(self) -> bool:
        return True

    def extent(self, source: Extent) -> Extent:
        return source._replace(channels=self.out.out_channels)

    def flops(self, source: Extent, batch: int) -> int:
        convs = sum(conv.flops(batch, source) for conv in (*self.queries, *self.keys_values, self.out))
        pixels = batch * source.frames * source.height * source.width
        return convs + 4 * pixels * self.out.in_channels * (self.dim + 1)

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        context, size, halo = walk.context, value.size, max(conv.pad_before for conv in self.queries)
        sums = KeyValueSums(context, self.out.in_channels // self.dim, self.dim)
        every_row = MultiscaleSource(context, self.keys_values, 0, size.height, value.again, size)
        every_row.work += 2 * context.batch * size.height * size.width * self.out.in_channels * (self.dim + 1)
        walk.pull(f"{self.name} (sums)", level, [Sink(every_row, moments=sums)], size)

        def read(top: int, bottom: int, last: bool) -> Source:
            shared = Shared(context, size, value.recipe(last), halo)
            main = self._attended(walk, sums, shared.reader, top, bottom, size)
            return AddedSource(main, shared.reader(top, bottom))

        return Value(self.extent(size), read)

    def _attended(
        self, walk: Walk, sums: KeyValueSums, source: MakeSource, top: int, bottom: int, size: Extent
    ) -> Source:
        queries = MultiscaleSource(walk.context, self.queries, top, bottom, source, size)
        attended = AttendedSource(walk.context, queries, sums, self.eps)
        return PerPixelSource(walk.context, PointwiseSource(walk.context, self.out, attended), self.after, None)


def chosen(convs: Sequence[Conv], dim: int, roles: tuple[int, ...]) -> tuple[Chosen, ...]:
    """The convolutions to queries (0), keys (1) and values (2), blocks of `dim` channels, for some of these roles.

    Args:    convs: to all of them; the first from a layer's input, then for each scale one of every channel and one of
             blocks of channels.
    """
    found: list[Chosen] = []
    for number, conv in enumerate(convs):
        channels = conv.out_channels // _ROLES * len(roles)
        groups = conv.groups // _ROLES * len(roles) if number else 1
        incoming = channels if number else conv.in_channels
        found.append(
            Chosen(
                conv.module, conv.name, incoming, channels, conv.kernel, conv.stride, conv.pad_before, conv.pad_after,
                conv.mode, turned=conv.turned, groups=groups, block=dim, turns=roles, every=_ROLES,
            )
        )  # fmt: skip
    return tuple(found)
