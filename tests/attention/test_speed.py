"""Back ends are timed against each other once for every kind of call, and the fastest is used where it matters."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from exact_vae.model_management import attention
from exact_vae.model_management.attention import attend, fastest_first, rank
from exact_vae.vae_model.attention.backends import ATTENTION, pytorch_attention
from torch import Tensor

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def fresh_cache() -> Iterator[None]:
    fastest_first.cache_clear()
    yield
    fastest_first.cache_clear()


def takes(seconds: float) -> Callable[..., Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int | None) -> Tensor:
        time.sleep(seconds)
        return q

    return run


def fails(error: Exception) -> Callable[..., Tensor]:
    def run(q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int | None, **_: object) -> Tensor:
        raise error

    return run


def test_the_fastest_comes_first() -> None:
    table = {"slow": takes(0.02), "fast": takes(0), "between": takes(0.006)}
    assert rank(tuple(table), table, 8, torch.float32, CPU) == ("fast", "between", "slow")


@pytest.mark.parametrize("error", [NotImplementedError("no such kernel"), torch.OutOfMemoryError("CUDA out of memory")])
def test_what_does_not_take_the_call_comes_last(error: Exception) -> None:
    table = {"broken": fails(error), "slow": takes(0.01), "fast": takes(0)}
    assert rank(tuple(table), table, 8, torch.float32, CPU) == ("fast", "slow", "broken")


def test_mistakes_are_not_taken_for_slowness() -> None:
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        rank(("broken",), {"broken": fails(RuntimeError("a bug"))}, 8, torch.float32, CPU)


def test_one_slow_call_does_not_decide() -> None:
    """The first is a warm-up, and of the others the median counts."""
    calls: list[int] = []

    def stumbles(q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int | None) -> Tensor:
        calls.append(len(calls))
        time.sleep(0.03 if len(calls) in (1, 3) else 0)
        return q

    table = {"steady": takes(0.01), "stumbles": stumbles}
    assert rank(tuple(table), table, 8, torch.float32, CPU) == ("stumbles", "steady")


@pytest.mark.usefixtures("fresh_cache")
def test_the_real_ones_are_timed_once_for_every_kind_of_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str) -> Callable[..., Tensor]:
        plain = ATTENTION[name]

        def run(*args: Any, **options: Any) -> Tensor:
            calls.append(name)
            return plain(*args, **options)

        return run

    for name in ("pytorch", "streamed"):
        monkeypatch.setitem(ATTENTION, name, counted(name))
    first = fastest_first(("pytorch", "streamed"), 16, torch.float32, CPU)
    assert sorted(first) == ["pytorch", "streamed"]
    timed = len(calls)
    assert timed > 2
    assert fastest_first(("pytorch", "streamed"), 16, torch.float32, CPU) == first
    assert len(calls) == timed
    fastest_first(("pytorch", "streamed"), 16, torch.bfloat16, CPU)
    assert len(calls) == 2 * timed


@pytest.mark.parametrize(("tokens", "used"), [(15, "pytorch"), (16, "streamed")])
def test_long_calls_go_to_the_fastest_and_short_ones_are_not_worth_timing(
    monkeypatch: pytest.MonkeyPatch, tokens: int, used: str
) -> None:
    monkeypatch.setattr(attention, "WORTH_TIMING", 16)
    monkeypatch.setattr(attention, "fastest_first", lambda names, *kind: tuple(reversed(names)))
    q, k, v = torch.randn(3, 1, tokens, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = pytorch_attention(q, k, v)
    seen: list[str] = []
    for name in ("pytorch", "sliced", "streamed"):
        plain = ATTENTION[name]
        monkeypatch.setitem(
            ATTENTION, name, lambda *args, name=name, plain=plain, **options: [seen.append(name), plain(*args)][1]
        )
    # float64: sums in another order.
    torch.testing.assert_close(attend(q, k, v), wanted, rtol=1e-12, atol=1e-12)
    assert seen == [used]


def test_the_fastest_may_run_out_of_memory_and_the_next_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "WORTH_TIMING", 16)
    monkeypatch.setattr(attention, "fastest_first", lambda names, *kind: tuple(reversed(names)))
    monkeypatch.setitem(ATTENTION, "streamed", fails(torch.OutOfMemoryError("CUDA out of memory")))
    q, k, v = torch.randn(3, 1, 20, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attend(q, k, v), pytorch_attention(q, k, v), rtol=1e-12, atol=1e-12)
