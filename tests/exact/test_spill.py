"""The store of strips: what comes back, which buffers are used again, and what is counted. Copies change nothing."""

from types import SimpleNamespace

import pytest
import torch
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.vae_model.exact.memory import pinned as host_memory
from exact_vae.vae_model.exact.memory.pinned import FIRST_SLAB_BYTES, PinnedSlabs
from exact_vae.vae_model.exact.memory.spill import Spill
from torch import Tensor

CPU = torch.device("cpu")
NEEDS_CUDA = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
ORDERS = [torch.contiguous_format, torch.channels_last]


def strip(rows: int = 4, dtype: torch.dtype = torch.float32, order: torch.memory_format = ORDERS[0]) -> Tensor:
    """Random values, 2 * 3 * rows * 5 of them."""
    values = torch.randn(2, 3, rows, 5, generator=torch.Generator().manual_seed(rows)).to(dtype)
    return values.contiguous(memory_format=order)


def brought_back(spill: Spill, parked: object) -> Tensor:
    return spill.arrived(*spill.fetch(parked))  # type: ignore[arg-type]


class Buffers:
    """An allocator that remembers what it was asked for."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, size: int) -> Tensor:
        self.sizes.append(size)
        return torch.full((size,), 255, dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("order", ORDERS)
def test_strips_come_back_equal_and_in_the_same_memory_order(dtype: torch.dtype, order: torch.memory_format) -> None:
    spill = Spill(CPU)
    originals = [strip(rows, dtype, order) for rows in (1, 4, 7)]
    parked = [spill.park(original.clone(memory_format=torch.preserve_format)) for original in originals]
    for original, waiting in zip(originals, parked, strict=True):
        for _ in range(2):  # Fetching does not use it up.
            back = brought_back(spill, waiting)
            torch.testing.assert_close(back, original, rtol=0, atol=0)
            assert back.stride() == original.stride()
            assert back.device == CPU
        torch.testing.assert_close(waiting.view(), original, rtol=0, atol=0)


def test_a_strip_may_change_once_it_is_parked_and_once_it_was_fetched() -> None:
    spill = Spill(CPU)
    original = strip()
    parked = spill.park(given := original.clone())
    given.zero_()
    brought_back(spill, parked).zero_()
    torch.testing.assert_close(brought_back(spill, parked), original, rtol=0, atol=0)


def test_buffers_are_used_again_by_strips_of_the_same_size() -> None:
    buffers = Buffers()
    spill = Spill(CPU, buffers)
    size = strip().nbytes
    for round_number in range(5):
        waiting = [spill.park(strip() + round_number) for _ in range(3)]
        for number, parked in enumerate(waiting):
            torch.testing.assert_close(brought_back(spill, parked), strip() + round_number, rtol=0, atol=0)
            spill.forget(parked)
            assert spill.host_bytes == (2 - number) * size
    assert buffers.sizes == [size] * 3
    assert spill.peak_host_bytes == 3 * size
    assert spill.host_bytes == 0


def test_a_buffer_serves_another_shape_dtype_and_order_of_equal_bytes() -> None:
    buffers = Buffers()
    spill = Spill(CPU, buffers)
    spill.forget(spill.park(strip(2)))
    for other in (strip(4, torch.bfloat16), strip(2, order=torch.channels_last), strip(1, torch.float64)):
        parked = spill.park(other)
        back = brought_back(spill, parked)
        torch.testing.assert_close(back, other, rtol=0, atol=0)
        assert back.stride() == other.stride()
        spill.forget(parked)
    assert buffers.sizes == [strip(2).nbytes]


def test_a_strip_of_another_size_gets_a_buffer_of_its_own() -> None:
    buffers = Buffers()
    spill = Spill(CPU, buffers)
    spill.forget(spill.park(strip(4)))
    spill.park(strip(3))
    assert buffers.sizes == [strip(4).nbytes, strip(3).nbytes]


def test_bytes_moved_are_counted_each_way() -> None:
    spill = Spill(CPU)
    first, second = spill.park(strip(4)), spill.park(strip(2))
    assert (spill.bytes_out, spill.bytes_in) == (strip(6).nbytes, 0)
    for parked in (first, second, first):
        brought_back(spill, parked)
    assert (spill.bytes_out, spill.bytes_in) == (strip(6).nbytes, strip(10).nbytes)
    spill.forget(first)
    assert spill.host_bytes == strip(2).nbytes
    assert spill.peak_host_bytes == strip(6).nbytes


def test_a_strip_lives_on_the_device_until_the_next_is_parked() -> None:
    # The bytes that a plan counts for it: an asynchronous copy reads the strip for as long.
    spill = Spill(CPU, allocate=lambda size: torch.from_numpy(_array(size)))
    with LiveTensorMeter() as meter:
        spill.park(strip(4))
        assert meter.current_bytes == strip(4).nbytes
        spill.park(strip(2))
        assert meter.current_bytes == strip(2).nbytes
        spill.close()
        assert meter.current_bytes == 0


def test_closing_gives_the_free_buffers_back() -> None:
    with LiveTensorMeter() as meter:
        spill = Spill(CPU)
        for parked in [spill.park(strip(4)) for _ in range(3)]:
            spill.forget(parked)
        del parked
        assert meter.current_bytes == 4 * strip(4).nbytes  # Three buffers and the strip parked last.
        spill.close()
        assert meter.current_bytes == 0
    spill.close()  # Twice is no mistake.


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_strips_cross_to_pinned_memory_and_back_while_the_device_works() -> None:
    device = torch.device("cuda")
    spill = Spill(device)
    originals = [torch.randn(4, 64, 16, 512, device=device) for _ in range(6)]
    kept = [original.cpu() for original in originals]
    for _ in range(3):
        parked = []
        for original in originals:
            parked.append(spill.park(original * 1))
            original.clone().mul_(2)  # Work that takes memory just freed, if it was freed too early.
        assert all(waiting.buffer.is_pinned() for waiting in parked)
        for waiting, expected in zip(parked, kept, strict=True):
            torch.testing.assert_close(brought_back(spill, waiting).cpu(), expected, rtol=0, atol=0)
            spill.forget(waiting)
    assert spill.peak_host_bytes == 6 * originals[0].nbytes
    spill.close()


def _array(size: int):  # type: ignore[no-untyped-def]
    """Memory that the meter does not see."""
    import numpy

    return numpy.zeros(size, dtype=numpy.uint8)


@pytest.mark.parametrize("registers", [False, pytest.param(True, marks=NEEDS_CUDA)])
def test_pieces_of_slabs_are_apart_and_come_again(registers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not registers:  # memory that is said to be pinned
        monkeypatch.setattr(host_memory, "_register", lambda slab: True)
        monkeypatch.setattr(torch.cuda, "cudart", lambda: SimpleNamespace(cudaHostUnregister=lambda pointer: 0))
    monkeypatch.setattr(host_memory, "SLAB_BYTES", 2 * FIRST_SLAB_BYTES)
    slabs = PinnedSlabs()
    sizes = [1, 5000, FIRST_SLAB_BYTES, 3 * 2**20, 4 * FIRST_SLAB_BYTES, 77]
    firsts: list[int] = []
    for _ in range(2):
        pieces = [slabs(size) for size in sizes]
        for piece, size in zip(pieces, sizes, strict=True):
            assert piece.numel() == size
            assert piece.is_pinned() or not registers
            piece.fill_(size % 251)
        assert all(bool((piece == size % 251).all()) for piece, size in zip(pieces, sizes, strict=True))
        firsts.append(pieces[0].data_ptr())
        slabs.rewind()
    assert firsts[0] == firsts[1]
    slabs.close()
    assert not pieces[0].is_pinned()
    slabs.close()  # Twice is no mistake.
