"""The tiny autoencoder's block as sources of rows; its pool, where there is one, takes a pass for its statistics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from .computed import AddedRows, ConvolvedRows, PointwiseRows
from .context import Context
from .moments import Moments
from .passes import Sink
from .rows import Recipe, Rows
from .shared import Shared
from .spec import Conv
from .step import Size, TinyBlock
from .value import Value, norm_fill

Perform = Callable[[str, int, list[Sink], Size], None]
"""(name, level, sinks, size): runs or plans a pass."""


def walk_tiny_block(context: Context, perform: Perform, step: TinyBlock, value: Value, size: Size, level: int) -> Value:
    """The block's result, computed whenever it is read."""
    source = value if step.pool is None else _pooled(context, perform, step, value, level)

    def read(top: int, bottom: int, last: bool) -> Rows:
        shared = Shared(context, value.size, source.last if last else source.again, lag=3)
        recipe: Recipe = shared.reader
        for number, conv in enumerate(step.convs):
            recipe = partial(_plain_conv, context, conv, recipe, value.size, step.activation if number < 2 else None)
        main = recipe(top, bottom)
        other = shared.reader(top, bottom)
        return AddedRows(main, other if step.skip is None else PointwiseRows(context, step.skip, other), step.fuse)

    return Value(size, read)


def _pooled(context: Context, perform: Perform, step: TinyBlock, value: Value, level: int) -> Value:
    """x + pool(x): the norm in the middle of the pool is over the whole image."""
    assert step.pool is not None
    first, norm, activation, last_conv = step.pool
    moments = Moments(norm.groups)
    inner_size = value.size._replace(channels=first.out_channels)
    sweep = Sink(PointwiseRows(context, first, value.again(0, value.size.height)), moments=moments)
    perform(f"{first.name} (statistics)", level, [sweep], inner_size)
    fill = partial(norm_fill, context, norm, moments, activation)

    def read(top: int, bottom: int, last: bool) -> Rows:
        shared = Shared(context, value.size, value.last if last else value.again, lag=0)
        inner: Recipe = lambda t, b: PointwiseRows(context, first, shared.reader(t, b))  # noqa: E731
        main = ConvolvedRows(context, last_conv, top, bottom, inner, inner_size, fill)
        return AddedRows(main, shared.reader(top, bottom))

    return Value(value.size, read)


def _plain_conv(
    context: Context, conv: Conv, source: Recipe, size: Size, after: str | None, top: int, bottom: int
) -> Rows:
    return ConvolvedRows(context, conv, top, bottom, source, size, None, after)
