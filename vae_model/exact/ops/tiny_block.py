"""A block without norms between its convolutions; its pool, where there is one, takes a pass for its statistics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from ..extent import Extent
from ..layer import Conv, Norm
from ..program import Op
from ..stream.added import AddedSource
from ..stream.convolved import ConvolvedSource
from ..stream.fill import norm_fill
from ..stream.pointwise import PointwiseSource
from ..stream.shared import Shared
from ..stream.source import MakeSource, Source
from ..stream.value import Value
from ..stream.walk import Walk


@dataclass(frozen=True)
class TinyBlock(Op):
    """x + pool(x) where there is a pool, three convolutions, plus x, activated."""

    three: tuple[Conv, Conv, Conv]
    activation: str
    skip: Conv | None
    fuse: str
    """The last activation."""
    pool: tuple[Conv, Norm, str, Conv] | None

    shares_rows = True

    @property
    def name(self) -> str:
        return self.three[2].name

    @property
    def streams(self) -> bool:
        return True

    @property
    def twice(self) -> bool:
        return self.pool is not None

    @property
    def convs(self) -> tuple[Conv, ...]:
        return self.three

    def extent(self, source: Extent) -> Extent:
        return source._replace(channels=self.three[2].out_channels)

    def flops(self, source: Extent, batch: int) -> int:
        pool = (self.pool[0], self.pool[3]) if self.pool else ()
        convs = [*self.three, *([self.skip] if self.skip else []), *pool]
        return sum(conv.flops(batch, source) for conv in convs)

    def lay(self, walk: Walk, value: Value, level: int, groups: int | None) -> Value:
        context = walk.context
        source = value if self.pool is None else _pooled(walk, self.pool, value, level)

        def read(top: int, bottom: int, last: bool) -> Source:
            shared = Shared(context, value.size, source.recipe(last), lag=3)
            recipe: MakeSource = shared.reader
            for number, conv in enumerate(self.three):
                after = self.activation if number < 2 else None
                recipe = partial(
                    ConvolvedSource, context, conv, source=recipe, source_size=value.size, fill=None, after=after
                )
            main = recipe(top, bottom)
            other = shared.reader(top, bottom)
            return AddedSource(
                main, other if self.skip is None else PointwiseSource(context, self.skip, other), self.fuse
            )

        return Value(self.extent(value.size), read)


def _pooled(walk: Walk, pool: tuple[Conv, Norm, str, Conv], value: Value, level: int) -> Value:
    """x + pool(x): the norm in the middle of the pool is over the whole image."""
    first, norm, activation, last_conv = pool
    context = walk.context
    moments = walk.sweep(first.name, PointwiseSource(context, first, value.every_row()), norm.groups, level)
    inner_size = value.size._replace(channels=first.out_channels)
    fill = partial(norm_fill, context, norm, moments, activation)

    def read(top: int, bottom: int, last: bool) -> Source:
        shared = Shared(context, value.size, value.recipe(last), lag=0)
        inner: MakeSource = lambda t, b: PointwiseSource(context, first, shared.reader(t, b))  # noqa: E731
        main = ConvolvedSource(context, last_conv, top, bottom, inner, inner_size, fill)
        return AddedSource(main, shared.reader(top, bottom))

    return Value(value.size, read)
