"""Exact runs in which memory runs out at any allocation: the exact image or one clear error, and nothing left alive.

The model is narrow and of three levels: every allocation of a run is failed once, and has to stand for a whole run.
"""

import gc
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from exact_vae import VAE
from exact_vae.model_management import LocalHost
from exact_vae.model_management.oom import is_oom
from exact_vae.tests.exactness import assert_exact
from exact_vae.tests.injector import AllocationFailures
from exact_vae.vae_model.checkpoint.load import LoadedModel, load_model
from exact_vae.vae_model.errors import MemoryBudgetError
from exact_vae.vae_model.families.ldm.autoencoder import build_kl
from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig
from torch import Tensor

CPU = torch.device("cpu")
SIDE = 64
FACTOR = 4
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


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    levels = LevelsConfig(ch=16, widths=(16, 32, 32), num_res_blocks=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_kl(KLConfig(4, 4, levels, levels, num_groups=8))
    return load_model(model.state_dict(), dtype=torch.float32, config={"norm_num_groups": 8})


@pytest.fixture
def vae(loaded: LoadedModel) -> Iterator[VAE]:
    with AllocationFailures():
        list(torch.zeros(1))  # some versions of PyTorch import their compiler now, which keeps the callers' frames
    gc.collect()
    gc.disable()
    yield VAE(loaded, Host(), device=CPU, dtype=torch.float32, output_device=CPU)
    gc.enable()


@pytest.fixture
def z() -> Tensor:
    z = torch.randn(1, 4, SIDE // FACTOR, SIDE // FACTOR, generator=torch.Generator().manual_seed(5))
    return z + torch.linspace(-2, 2, SIDE // FACTOR)


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


def check_failures(vae: VAE, z: Tensor, numbers: Sequence[int]) -> None:
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
@pytest.mark.parametrize("part", range(4))
def test_one_failure_at_every_other_allocation_is_overcome(vae: VAE, z: Tensor, part: int) -> None:
    others = [number for number in range(1, count(vae, z) + 1) if number % STRIDE != 1]
    check_failures(vae, z, others[part::4])


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
    for limit in range(free // 36, free + free // 9, free // 12):
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
    batch = torch.cat([z, z.flip(2), -z])[..., :8, :8]
    untiled = vae.decode(batch, "untiled")
    for number in range(40, count(vae, batch), 173):
        told: list[float] = []
        result = decode(vae, batch, AllocationFailures(fail_at=number), progress=told.append)
        assert isinstance(result, Tensor)
        assert_exact(result, untiled)
        assert told == sorted(told)
        assert told[-1] == 1
