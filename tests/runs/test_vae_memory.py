"""Untiled runs and blended tiles in too little memory: refused before any work, or run in smaller pieces with the same
result; progress and stopping. The exact runs have files of their own, runs/test_run_exact.py and
test_run_exact_memory.py.
"""

from collections.abc import Callable

import pytest
import torch
from exact_vae import VAE
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.model_management.host import LocalHost
from exact_vae.vae_model.errors import MemoryBudgetError
from exact_vae.vae_model.errors.bytesize import format_bytes
from torch import Tensor, nn

CPU = torch.device("cpu")
GIB = 2**30


class FakeHost(LocalHost):
    """As much free memory as told, and notes of what was asked for."""

    def __init__(self, free_bytes: int = 8 * GIB) -> None:
        super().__init__()
        self.free_bytes = free_bytes
        self.loads: list[int] = []
        self.emptied = 0

    def load_model(self, model: nn.Module, device: torch.device, memory_required: int = 0) -> None:
        self.loads.append(memory_required)

    def get_free_memory(self, device: torch.device) -> int:
        return self.free_bytes

    def soft_empty_cache(self) -> None:
        self.emptied += 1


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def vae(small_vae: VAE, host: FakeHost) -> VAE:
    return VAE(small_vae.loaded, host, device=CPU, dtype=torch.float32, output_device=CPU)


def latents(batch: int = 1, height: int = 4, width: int = 4) -> Tensor:
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(7))


def watch(vae: VAE, monkeypatch: pytest.MonkeyPatch, fails: Callable[[Tensor], bool] = lambda x: False) -> list[Tensor]:
    """Run out of memory, with big tensors in hand, where `fails` says so. Returns the list of shapes that were run."""
    seen: list[Tensor] = []

    def wrap(plain: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            seen.append(tuple(x.shape))
            if fails(x):
                in_hand = torch.zeros(1_000_000)
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {in_hand.nbytes} bytes")
            return plain(x)

        return run

    monkeypatch.setattr(vae, "_decode_raw", wrap(vae._decode_raw))
    monkeypatch.setattr(vae, "_encode_raw", wrap(vae._encode_raw))
    return seen


def test_a_limit_that_one_item_exceeds_is_refused_before_any_work(
    vae: VAE, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch(vae, monkeypatch)
    needed = vae.memory_used_decode((1, 4, 4, 6), torch.float32)
    with pytest.raises(MemoryBudgetError) as caught:
        vae.decode(latents(2, 4, 6), "untiled", memory=needed - 1)
    assert str(caught.value) == (
        f"decode to 48 x 32 pixels: expected {format_bytes(needed)} of activations to fit, "
        f"got {format_bytes(needed - 1)} allowed: use a smaller image, free memory, or method 'blend' (approximate)"
    )
    needed = vae.memory_used_encode((1, 3, 32, 48), torch.float32)
    with pytest.raises(MemoryBudgetError) as caught:
        vae.encode(torch.rand(1, 32, 48, 3), "untiled", memory="100KiB")
    assert str(caught.value) == (
        f"encode to 6 x 4 latent cells: expected {format_bytes(needed)} of activations to fit, "
        "got 100 KiB allowed: use a smaller image, free memory, or method 'blend' (approximate)"
    )
    assert seen == []
    assert host.loads == []


def test_a_limit_that_one_item_just_meets_is_enough(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = vae.decode(latents(3, 2, 2), "untiled")
    needed = vae.memory_used_decode((1, 4, 2, 2), torch.float32)
    seen = watch(vae, monkeypatch)
    limited = vae.decode(latents(3, 2, 2), "untiled", memory=needed)
    assert seen == [(1, 4, 2, 2)] * 3
    torch.testing.assert_close(limited, whole, rtol=0, atol=2e-5)  # float32 rounding; another batch size
    seen.clear()
    vae.decode(latents(5, 2, 2), "untiled", memory=2 * needed)
    assert [shape[0] for shape in seen] == [2, 2, 1]


def test_the_memory_of_a_cpu_is_a_limit_too(vae: VAE, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(vae, monkeypatch)
    host.free_bytes = 1000
    with pytest.raises(MemoryBudgetError, match=r"got 1000 B free: use a smaller image") as caught:
        vae.decode(latents(), "untiled")
    assert "\n" not in str(caught.value)
    assert seen == []
    assert host.loads == [vae.memory_used_decode((1, 4, 4, 4), torch.float32)]


def test_out_of_memory_for_batches_ends_in_single_items(
    vae: VAE, host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, x = latents(3), torch.rand(3, 32, 32, 3)
    decoded, encoded = vae.decode(z, "untiled"), vae.encode(x, "untiled")
    seen = watch(vae, monkeypatch, fails=lambda batch: len(batch) > 1)
    # float32 rounding; another batch size
    torch.testing.assert_close(vae.decode(z, "untiled"), decoded, rtol=0, atol=2e-5)
    torch.testing.assert_close(vae.encode(x, "untiled"), encoded, rtol=0, atol=2e-5)
    assert seen == [(3, 4, 4, 4), *[(1, 4, 4, 4)] * 3, (3, 3, 32, 32), *[(1, 3, 32, 32)] * 3]
    assert host.emptied == 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), MemoryError(), RuntimeError("HIP out of memory")])
def test_out_of_memory_for_one_item_is_an_error_and_never_an_approximation(
    vae: VAE, host: FakeHost, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(x: Tensor) -> Tensor:
        calls.append(tuple(x.shape))
        raise error

    calls: list[tuple[int, ...]] = []
    monkeypatch.setattr(vae, "_decode_raw", fail)
    with pytest.raises(MemoryBudgetError) as caught:
        vae.decode(latents(2), "untiled")
    needed = format_bytes(vae.memory_used_decode((1, 4, 4, 4), torch.float32))
    assert str(caught.value) == (
        f"decode to 32 x 32 pixels: expected {needed} of activations to fit, got 8.00 GiB free: "
        "use a smaller image, free memory, or method 'blend' (approximate)"
    )
    assert calls == [(2, 4, 4, 4), (1, 4, 4, 4)]
    assert host.emptied == 2


def test_other_errors_are_not_taken_for_lack_of_memory(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(vae, "_decode_raw", fail)
    for method in ("untiled", "blend"):
        with pytest.raises(RuntimeError, match=r"^decode: expected no error, got RuntimeError: a bug: check") as caught:
            vae.decode(latents(), method)
        assert str(caught.value.__cause__) == "a bug"


@pytest.mark.parametrize("method", ["untiled", "blend"])
def test_what_failed_is_freed(vae: VAE, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The traceback of a failure holds the failed tensors; nothing of it may be left when the next attempt begins."""
    held: list[int] = []
    z = latents(2, 20, 2)
    plain = vae.host.check_interrupt
    with LiveTensorMeter() as meter:
        monkeypatch.setattr(vae.host, "check_interrupt", lambda: [held.append(meter.current_bytes), plain()][1])
        watch(vae, monkeypatch, fails=lambda x: True)
        before = meter.current_bytes
        with pytest.raises(MemoryBudgetError):
            vae.decode(z, method)
    assert len(held) >= 1
    assert max(held) < 1_000_000  # each attempt had four million bytes in hand
    assert meter.peak_bytes > 4_000_000
    assert meter.current_bytes == before


def test_blended_tiles_shrink_to_the_memory(vae: VAE, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(vae, monkeypatch)
    host.free_bytes = vae.memory_used_decode((1, 4, 16, 16), torch.float32)
    vae.decode(latents(1, 20, 20), "blend")
    assert set(seen) == {(1, 4, 16, 16)}
    seen.clear()
    host.free_bytes = 8 * GIB
    vae.decode(latents(1, 20, 20), "blend", memory=vae.memory_used_decode((1, 4, 8, 8), torch.float32))
    assert set(seen) == {(1, 4, 8, 8)}


def test_blended_tiles_that_run_out_of_memory_get_smaller_and_cover_all(
    vae: VAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = vae.decode(latents(1, 12, 12), "blend", tile_size=64)
    seen = watch(vae, monkeypatch, fails=lambda x: x.shape[-1] > 8)
    assert torch.equal(vae.decode(latents(1, 12, 12), "blend"), expected)
    assert {shape[-1] for shape in seen} == {12, 8}


def test_progress_does_not_go_back_when_tiles_get_smaller(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[bool] = []

    def fails_late(x: Tensor) -> bool:
        late = x.shape[-1] == 16 and len(seen) == 3 and not failed
        failed.extend([True] * late)
        return late

    seen = watch(vae, monkeypatch, fails=fails_late)
    told: list[float] = []
    vae.decode(latents(1, 40, 40), "blend", tile_size=128, progress=told.append)
    assert failed
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_a_tile_beyond_the_limit_is_refused_before_any_work(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watch(vae, monkeypatch)
    needed = vae.memory_used_decode((1, 4, 8, 4), torch.float32)
    with pytest.raises(MemoryBudgetError) as caught:
        vae.decode(latents(1, 12, 4), "blend", memory=1000, tile_size=64)
    assert str(caught.value) == (
        f"decode by tiles: expected {format_bytes(needed)} for one tile to fit, got 1000 B allowed: "
        "allow more memory or make the tiles smaller"
    )
    assert seen == []


def test_the_smallest_tile_out_of_memory_is_an_error(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    watch(vae, monkeypatch, fails=lambda x: True)
    with pytest.raises(MemoryBudgetError) as caught:
        vae.encode(torch.rand(1, 128, 128, 3), "blend")
    assert str(caught.value) == "encode by tiles: expected a tile of 64 to fit, got out of memory: free some memory"


@pytest.mark.parametrize("method", ["untiled", "blend"])
def test_progress_rises_to_one(vae: VAE, method: str) -> None:
    memory = vae.memory_used_decode((1, 4, 2, 2), torch.float32)
    decoding: list[float] = []
    vae.decode(latents(3, 2, 2), method, memory=memory, progress=decoding.append)
    encoding: list[float] = []
    vae.encode(torch.rand(5, 8, 8, 3), method, progress=encoding.append)
    for fractions in (decoding, encoding):
        assert len(fractions) >= 2
        assert fractions == sorted(fractions)
        assert fractions[0] > 0
        assert fractions[-1] == 1


def test_progress_of_tiles_counts_every_tile(vae: VAE) -> None:
    fractions: list[float] = []
    vae.decode(latents(2, 8, 14), "blend", tile_size=64, overlap=16, progress=fractions.append)
    assert fractions == [0.25, 0.5, 0.75, 1]


class Stop(Exception):
    """A host's own interruption."""


@pytest.mark.parametrize("method", ["untiled", "blend"])
def test_an_interruption_stops_at_once(vae: VAE, host: FakeHost, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    seen = watch(vae, monkeypatch)

    def stop() -> None:
        if seen:
            raise Stop

    monkeypatch.setattr(host, "check_interrupt", stop)
    with pytest.raises(Stop):
        vae.decode(latents(6, 8, 14), method, tile_size=64)
    assert len(seen) == 1
