"""Exact runs in which memory runs out at any allocation: the exact image or one clear error, and nothing left alive."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from exact_vae import VAE
from exact_vae.model_management import LocalHost
from exact_vae.model_management.oom import is_oom
from exact_vae.tests.injector import AllocationFailures
from exact_vae.vae_model.errors import MemoryBudgetError
from torch import Tensor

CPU = torch.device("cpu")
MIB = 2**20
SIDE = 256
pytestmark = pytest.mark.usefixtures("one_thread")


class Host(LocalHost):
    """Tells where the run begins: behind the checks of the input and the allocation of the output."""

    failures: AllocationFailures | None = None
    begun_at = 0

    def make_plan(self, *args: Any, **options: Any) -> Any:
        if self.failures is not None and not self.begun_at:
            self.begun_at = self.failures.count + 1
        return super().make_plan(*args, **options)

    def soft_empty_cache(self) -> None:
        """Nothing: what must be freed is freed without the garbage collector."""


@pytest.fixture
def vae(small_vae: VAE) -> Iterator[VAE]:
    with AllocationFailures():
        list(torch.zeros(1))  # the first time in any mode PyTorch imports its compiler, which keeps the callers' frames
    gc.collect()
    gc.disable()
    yield VAE(small_vae.loaded, Host(), device=CPU, dtype=torch.float32, output_device=CPU)
    gc.enable()


@pytest.fixture
def z() -> Tensor:
    z = torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(5))
    return z + torch.linspace(-2, 2, SIDE // 8)


def assert_exact(actual: Tensor, untiled: Tensor) -> None:
    spread = float(untiled.max() - untiled.min())
    assert spread > 0.01
    torch.testing.assert_close(actual, untiled, rtol=0, atol=2e-5 * spread)  # the project's bound for float32


def decode(vae: VAE, z: Tensor, failures: AllocationFailures, **options: Any) -> Tensor | str:
    """The image, or the line of the error; nothing else that the run made is left alive."""
    host: Any = vae.host
    host.failures, host.begun_at = failures, 0
    result: Tensor | str
    try:
        with failures:
            result = vae.decode(z, **options)
    except MemoryBudgetError as error:
        result = str(error)
    except Exception as error:
        if not is_oom(error) or host.begun_at:
            raise
        result = str(error)
    left = result.nbytes if isinstance(result, Tensor) else 0
    assert failures.current_bytes == left
    return result


def count(vae: VAE, z: Tensor) -> int:
    failures = AllocationFailures()
    assert isinstance(decode(vae, z, failures), Tensor)
    return failures.count


def check_failures(vae: VAE, z: Tensor, numbers: range) -> None:
    untiled = vae.decode(z, "untiled")
    for number in numbers:
        failures = AllocationFailures(fail_at=number)
        result = decode(vae, z, failures)
        assert failures.failed == 1
        begun_at = vae.host.begun_at  # type: ignore[attr-defined]
        if isinstance(result, Tensor):
            assert_exact(result, untiled)
            assert number >= begun_at
        else:
            assert not begun_at  # once the run has begun, one failure is overcome
            assert "\n" not in result


STRIDE = 29


def test_one_failure_anywhere_is_overcome(vae: VAE, z: Tensor) -> None:
    check_failures(vae, z, range(1, count(vae, z) + 1, STRIDE))


@pytest.mark.slow
@pytest.mark.parametrize("offset", range(2, STRIDE + 1))
def test_one_failure_at_every_other_allocation_is_overcome(vae: VAE, z: Tensor, offset: int) -> None:
    check_failures(vae, z, range(offset, count(vae, z) + 1, STRIDE))


def test_when_nothing_can_be_allocated_any_more_it_is_one_clear_error(vae: VAE, z: Tensor) -> None:
    for number in range(20, count(vae, z), 97):
        result = decode(vae, z, AllocationFailures(fail_at=number, once=False))
        assert isinstance(result, str)
        assert result.startswith("decode: expected ")
        assert result.endswith("free: free memory or use a smaller image")
        assert "\n" not in result


def test_every_allocation_above_a_limit(vae: VAE, z: Tensor) -> None:
    """The limit is known to nobody: the plans come down to it by themselves, or tell that there is none."""
    untiled = vae.decode(z, "untiled")
    assert isinstance(vae.decode(z), Tensor)
    assert vae.last_plan is not None
    free = vae.last_plan.peak_bytes
    outcomes: list[bool] = []
    for limit in range(MIB, free + 4 * MIB, 3 * MIB):
        failures = AllocationFailures(limit_bytes=limit)
        result = decode(vae, z, failures)
        assert failures.peak_bytes <= limit
        outcomes.append(isinstance(result, Tensor))
        if isinstance(result, Tensor):
            assert_exact(result, untiled)
        else:
            assert "\n" not in result
    assert outcomes == sorted(outcomes)  # what fits fits in more, too
    assert not outcomes[0]
    assert outcomes[len(outcomes) // 2]
    assert vae.last_plan.peak_bytes <= free


def test_a_batch_keeps_what_was_done_when_memory_gets_short(vae: VAE, z: Tensor) -> None:
    """Each item may fail where it wants; the items before it stand."""
    batch = torch.cat([z, z.flip(2), -z])[..., :16, :16]
    untiled = vae.decode(batch, "untiled")
    for number in range(40, count(vae, batch), 173):
        told: list[float] = []
        result = decode(vae, batch, AllocationFailures(fail_at=number), progress=told.append)
        assert isinstance(result, Tensor)
        assert_exact(result, untiled)
        assert told == sorted(told)
        assert told[-1] == 1
