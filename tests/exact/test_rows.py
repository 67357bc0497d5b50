"""Sources of rows that only move values, planes and inputs, read by any pattern; not one bit may change."""

import random

import pytest
import torch
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.vae_model.exact.extent import Extent
from exact_vae.vae_model.exact.memory.spill import Spill
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.exact.stream.plane import Plane
from exact_vae.vae_model.exact.stream.shared import Shared
from exact_vae.vae_model.exact.stream.source import InputSource, PlaneSource, Source
from torch import Tensor

pytestmark = pytest.mark.usefixtures("inference")

CPU = torch.device("cpu")
SAME = {"rtol": 0, "atol": 0}


def context(channels_last: bool = True) -> Context:
    return Context(2, torch.float64, CPU, channels_last, spill=Spill(CPU))


def image(height: int, width: int = 5, channels: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randn(2, channels, height, width, dtype=torch.float64, generator=generator)


def size_of(x: Tensor) -> Extent:
    return Extent(x.shape[1], x.shape[2], x.shape[3])


def rows_of(x: Tensor, top: int, bottom: int, kind: type[InputSource] = InputSource) -> InputSource:
    """x as an input, rows top..bottom of it."""
    return kind(context(), size_of(x), top, bottom, lambda first, last: x[:, :, first:last])


def plane_of(x: Tensor, strip_rows: int, device_share: float = 1.0, ctx: Context | None = None) -> Plane:
    plane = Plane(ctx or context(), size_of(x), strip_rows, device_share)
    for index, strip in enumerate(x.split(strip_rows, dim=2)):
        plane.put(index, strip.clone())
    return plane


def cyclic(x: Tensor, top: int, bottom: int) -> Tensor:
    """Rows top..bottom of an image that repeats."""
    return x[:, :, [row % x.shape[2] for row in range(top, bottom)]]


def read(rows: Source, ends: list[int]) -> Tensor:
    """Everything, taken up to each of `ends` in turn."""
    pieces: list[Tensor] = []
    for end in [*ends, rows.bottom]:
        before = rows.at
        taken = [piece.clone() for piece in rows.take(end)]
        assert sum(piece.shape[2] for piece in taken) == end - before
        pieces += taken
    return torch.cat(pieces, dim=2)


def every_step(top: int, bottom: int) -> list[list[int]]:
    """Ends of reading by 1, 2, 3, ... rows, and some uneven ones."""
    patterns = [list(range(top + step, bottom, step)) for step in range(1, bottom - top + 1)]
    for seed in range(3):
        choice = random.Random(seed)
        patterns.append(sorted(choice.sample(range(top + 1, bottom), choice.randint(0, bottom - top - 1))))
    return patterns


@pytest.mark.parametrize("device_share", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("consume", [True, False])
@pytest.mark.parametrize("height", [1, 2, 5, 8])
def test_planes_are_read_by_any_pattern_with_rows_of_the_other_end(
    height: int, consume: bool, device_share: float
) -> None:
    x = image(height)
    for halo in range(min(height, 3) + 1):
        top, bottom = -halo, height + halo
        for strip_rows in range(1, height + 2):
            for ends in every_step(top, bottom):
                plane = plane_of(x, strip_rows, device_share)
                result = read(PlaneSource(plane, top, bottom, consume=consume), ends)
                torch.testing.assert_close(result, cyclic(x, top, bottom), **SAME)
                for index in range(plane.count):
                    if consume:
                        with pytest.raises(RuntimeError, match="to be stored"):
                            plane.get(index)
                    else:
                        plane.get(index)


def test_strips_are_dropped_as_soon_as_their_last_row_is_taken() -> None:
    plane = plane_of(image(7), 2)
    rows = PlaneSource(plane, 0, 7, consume=True)
    stored: list[int] = []
    for end in range(1, 8):
        rows.take(end)
        stored.append(sum(_has(plane, index) for index in range(plane.count)))
    assert stored == [4, 3, 3, 2, 2, 1, 0]


def _has(plane: Plane, index: int) -> bool:
    try:
        plane.get(index)
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("source_dtype", [torch.float64, torch.float32, torch.float16])
def test_inputs_are_converted_and_wrapped(source_dtype: torch.dtype) -> None:
    x = image(5).to(source_dtype)
    for top, bottom in ((0, 5), (-2, 7), (-1, 6)):
        for ends in every_step(top, bottom):
            result = read(rows_of(x, top, bottom), ends)
            assert result.dtype == torch.float64
            torch.testing.assert_close(result, cyclic(x, top, bottom).double(), **SAME)


class Counted(InputSource):
    """Remembers how often each row was taken."""

    taken: list[int]

    def take(self, bottom: int) -> list[Tensor]:
        self.taken += range(self.at, bottom)
        return super().take(bottom)


@pytest.mark.parametrize("lag", [0, 1, 2, 3])
@pytest.mark.parametrize("strip_rows", [1, 2, 3, 5, 11])
def test_two_readers_share_one_reading(lag: int, strip_rows: int) -> None:
    x = image(11)
    sources: list[Counted] = []

    def recipe(top: int, bottom: int) -> Source:
        source = rows_of(x, top, bottom, Counted)
        assert isinstance(source, Counted)
        source.taken = []
        sources.append(source)
        return source

    shared = Shared(context(), size_of(x), recipe, lag)
    leader, follower = shared.reader(-lag, 11 + lag), shared.reader(0, 11)
    first: list[Tensor] = []
    second: list[Tensor] = []
    for top in range(0, 11, strip_rows):
        bottom = min(11, top + strip_rows)
        first += [piece.clone() for piece in leader.take(bottom + lag)]
        second += [piece.clone() for piece in follower.take(bottom)]
    torch.testing.assert_close(torch.cat(first, 2), cyclic(x, -lag, 11 + lag), **SAME)
    torch.testing.assert_close(torch.cat(second, 2), x, **SAME)
    assert [source.taken for source in sources] == [list(range(-lag, 11 + lag))]


def test_shared_rows_are_let_go_behind_the_slower_reader() -> None:
    x = image(40)
    row_bytes = context().row_bytes(size_of(x))
    with LiveTensorMeter() as meter:
        shared = Shared(context(), size_of(x), lambda top, bottom: rows_of(x, top, bottom), lag=1)
        leader, follower = shared.reader(0, 40), shared.reader(0, 40)
        for bottom in range(2, 41, 2):
            leader.take(min(40, bottom + 1))
            follower.take(bottom)
            assert meter.current_bytes <= 3 * row_bytes  # The piece that the slower one stands in, up to 3 rows.
        assert meter.current_bytes == 0
