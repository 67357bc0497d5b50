"""Planes: which strips stay on the device, what they weigh, and what happens to strips nobody has."""

import itertools

import pytest
import torch
from exact_vae.vae_model.exact.extent import Extent
from exact_vae.vae_model.exact.memory.spill import Parked, Spill
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.exact.stream.plane import Plane
from torch import Tensor

CPU = torch.device("cpu")
SHARES = [0.0, 0.1, 0.25, 1 / 3, 0.5, 0.7, 0.9, 1.0]


def context(dtype: torch.dtype = torch.float32, batch: int = 2) -> Context:
    return Context(batch, dtype, CPU, spill=Spill(CPU))


def filled(plane: Plane) -> list[Tensor]:
    """Fill a plane with random strips; the strips as they were put in."""
    strips: list[Tensor] = []
    for index in range(plane.count):
        rows = min(plane.strip_rows, plane.size.height - index * plane.strip_rows)
        strip = plane.context.strip(plane.size, rows).normal_()
        strips.append(strip.clone())
        plane.put(index, strip)
    return strips


def stored_bytes(plane: Plane, indices: range, *, parked: bool) -> int:
    """Bytes of the strips that really are parked, or really are not."""
    total = 0
    for index in indices:
        strip = plane.get(index)
        if isinstance(strip, Parked) == parked:
            total += strip.shape.numel() * strip.dtype.itemsize
    return total


@pytest.mark.parametrize("device_share", SHARES)
@pytest.mark.parametrize("height", [1, 2, 7, 12])
def test_strips_come_back_as_they_were(height: int, device_share: float) -> None:
    for strip_rows in range(1, height + 2):
        plane = Plane(context(), Extent(3, height, 5), strip_rows, device_share)
        assert plane.count == -(-height // strip_rows)
        for index, expected in enumerate(filled(plane)):
            strip = plane.get(index)
            assert isinstance(strip, Parked) != plane.on_device(index)
            values = strip.view() if isinstance(strip, Parked) else strip
            torch.testing.assert_close(values, expected, rtol=0, atol=0)  # A copy changes nothing.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device_share", SHARES)
def test_bytes_are_those_of_the_stored_strips(device_share: float, dtype: torch.dtype) -> None:
    for height, strip_rows in itertools.product([1, 2, 7, 10, 11], [1, 2, 3, 4, 20]):
        plane = Plane(context(dtype), Extent(3, height, 5), strip_rows, device_share)
        filled(plane)
        for first, last in itertools.combinations_with_replacement(range(plane.count + 1), 2):
            expected = stored_bytes(plane, range(first, last), parked=False)
            assert plane.device_bytes(first, last) == expected, (height, strip_rows, first, last)
        assert plane.host_bytes() == stored_bytes(plane, range(plane.count), parked=True)
        assert plane.host_bytes() + plane.device_bytes(0, plane.count) == plane.context.plane_bytes(plane.size)


@pytest.mark.parametrize("device_share", SHARES)
def test_the_share_is_spread_evenly(device_share: float) -> None:
    plane = Plane(context(), Extent(3, 97, 5), 1, device_share)
    kept = [plane.on_device(index) for index in range(plane.count)]
    # Any run of n strips keeps n * share of them, give or take less than one at each end.
    for first, last in itertools.combinations(range(0, 98, 7), 2):
        assert abs(sum(kept[first:last]) - (last - first) * device_share) < 1 + 1e-6
    if device_share in (0.0, 1.0):
        assert set(kept) == {device_share == 1.0}


def test_shares_that_no_binary_number_equals_lose_no_strip() -> None:
    for strips in range(1, 60):
        plane = Plane(context(), Extent(1, strips, 1), 1, 1 / 3 + 1 / 3 + 1 / 3)
        assert all(plane.on_device(index) for index in range(strips))
    for tenths in range(11):
        plane = Plane(context(), Extent(1, 10, 1), 1, tenths * 0.1)
        assert sum(plane.on_device(index) for index in range(10)) == tenths


@pytest.mark.parametrize("device_share", [0.0, 1.0])
def test_dropped_strips_are_gone_and_asking_for_them_is_an_error(device_share: float) -> None:
    plane = Plane(context(), Extent(3, 7, 5), 2, device_share)
    filled(plane)
    plane.drop(1)
    plane.get(0)
    plane.get(2)
    with pytest.raises(RuntimeError, match="plane: expected strip 1 to be stored, it is not"):
        plane.get(1)
    with pytest.raises(RuntimeError, match="strip 9"):
        plane.get(9)


def test_dropping_a_parked_strip_frees_its_buffer_for_the_next() -> None:
    spill = Spill(CPU)
    plane = Plane(Context(2, torch.float32, CPU, spill=spill), Extent(3, 8, 5), 2, 0.0)
    filled(plane)
    strip_bytes = 2 * 3 * 2 * 5 * 4
    assert spill.host_bytes == plane.host_bytes() == 4 * strip_bytes
    for index in range(4):
        plane.drop(index)
        assert spill.host_bytes == (3 - index) * strip_bytes
    filled(plane)
    assert spill.peak_host_bytes == 4 * strip_bytes


def test_a_plane_that_spills_nothing_needs_no_store() -> None:
    plane = Plane(Context(2, torch.float32, CPU), Extent(3, 8, 5), 3)
    filled(plane)
    assert plane.host_bytes() == 0
