"""The exact run inside a VAE: recovery from lack of memory, nothing left alive, stopping, progress."""

import gc
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from exact_vae import VAE
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.model_management import LocalHost, memory
from exact_vae.tests.exactness import assert_exact
from exact_vae.vae_model.errors import MemoryBudgetError
from exact_vae.vae_model.errors.bytesize import format_bytes
from exact_vae.vae_model.host import ENDLESS
from exact_vae.vae_model.runs import exact as run_exact
from torch import Tensor, nn

CPU = torch.device("cpu")
GIB = 2**30
IN_HAND = 1_000_000
DIRECTIONS = pytest.mark.parametrize("direction", ["decode", "encode"])
pytestmark = pytest.mark.usefixtures("one_thread")


class Stop(Exception):
    """A host's own interruption."""


class FakeHost(LocalHost):
    """Notes what was asked for, and fails or stops where a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[int] = []
        self.limits: list[int | None] = []
        self.plans: list[Any] = []
        self.emptied = self.attended = 0
        self.fails: Callable[[int], Exception | None] = lambda number: None
        self.stops: Callable[[], bool] = lambda: False
        self.on_plan: Callable[[], object] = lambda: None

    def load_model(self, model: nn.Module, device: torch.device, memory_required: int = 0) -> None:
        self.loads.append(memory_required)

    def soft_empty_cache(self) -> None:
        self.emptied += 1

    def make_plan(self, *args: Any) -> Any:
        self.on_plan()
        plan = super().make_plan(*args)
        if args[4] != ENDLESS:
            self.limits.append(args[4])
            self.plans.append(plan)
        return plan

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """In the middle of every item; these sizes attend once an item."""
        self.attended += 1
        in_hand = torch.zeros(IN_HAND)
        error = self.fails(self.attended)
        if error is not None:
            try:
                raise error
            finally:
                del error  # an error's traceback and a frame that names it would hold each other
        del in_hand
        return super().attend(q, k, v)

    def check_interrupt(self) -> None:
        if self.stops():
            raise Stop


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
def vae(small_vae: VAE, host: FakeHost) -> VAE:
    return VAE(small_vae.loaded, host, device=CPU, dtype=torch.float32, output_device=CPU)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Cycles would hide what a failure keeps alive, or free it late."""
    with LiveTensorMeter():
        list(torch.zeros(1))  # the first time in any mode PyTorch imports its compiler, which keeps the callers' frames
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def sample(direction: str, batch: int = 1, side: int = 128) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    if direction == "decode":
        z = torch.randn(batch, 4, side // 8, side // 8, generator=generator)
        return z + torch.linspace(-2, 2, side // 8)
    return (torch.rand(batch, side, side, 3, generator=generator) + torch.linspace(0, 1, side)[:, None]) / 2


def out_of_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory")


@DIRECTIONS
def test_out_of_memory_on_the_way_plans_again_with_less(vae: VAE, host: FakeHost, direction: str) -> None:
    x = sample(direction, 3)
    untiled = getattr(vae, direction)(x, "untiled")
    host.attended = 0
    host.fails = lambda number: out_of_memory() if number in (2, 3) else None
    assert_exact(getattr(vae, direction)(x), untiled)
    assert host.attended == 3 + 2  # three items, the second one three times: what was done is not run again
    asked, first, second, third = host.plans
    assert asked.schedule == first.schedule  # what room was asked for, and what ran with the model in place
    assert host.limits == [None, None, first.peak_bytes * 3 // 4, second.peak_bytes * 3 // 4]
    assert first.peak_bytes > second.peak_bytes > third.peak_bytes
    assert vae.last_plan is third  # the last item keeps to it, too
    assert host.emptied == 2


@pytest.mark.parametrize("error", [out_of_memory(), MemoryError(), RuntimeError("HIP out of memory")], ids=repr)
@DIRECTIONS
def test_where_nothing_smaller_fits_it_is_one_clear_error(
    vae: VAE, host: FakeHost, monkeypatch: pytest.MonkeyPatch, direction: str, error: Exception
) -> None:
    monkeypatch.setattr(host, "get_free_memory", lambda device: 8 * GIB)
    host.fails = lambda number: error
    with pytest.raises(MemoryBudgetError) as caught:
        getattr(vae, direction)(sample(direction))
    tried = host.plans[1:]  # the first one told how much room to ask for
    smallest = tried[-1].peak_bytes
    assert str(caught.value) == (
        f"{direction}: expected {format_bytes(smallest)} of memory, ran out with 8.00 GiB free: "
        "free memory or use a smaller image"
    )
    peaks = [plan.peak_bytes for plan in tried]
    assert len(peaks) >= 3
    assert all(4 * after <= 3 * before for before, after in pairwise(peaks))
    assert host.attended == host.emptied == len(peaks)
    assert vae.last_plan is None


@DIRECTIONS
def test_other_errors_end_the_run_at_once(vae: VAE, host: FakeHost, direction: str) -> None:
    error = RuntimeError("a bug")
    host.fails = lambda number: error
    words = f"^{direction}: expected no error, got RuntimeError: a bug: check"
    with pytest.raises(RuntimeError, match=words) as caught:
        getattr(vae, direction)(sample(direction))
    assert caught.value.__cause__ is error
    assert (host.attended, host.emptied) == (1, 0)


@pytest.mark.usefixtures("no_collector")
@DIRECTIONS
def test_nothing_of_a_failed_attempt_stays_alive(vae: VAE, host: FakeHost, direction: str) -> None:
    """The traceback of a failure holds the failed tensors; none may be left when the next attempt is planned."""
    x = sample(direction, 2)
    with LiveTensorMeter() as meter:
        out = getattr(vae, direction)(x)
        assert meter.current_bytes == out.nbytes
        del out
        held: list[int] = []
        host.on_plan = lambda: held.append(meter.current_bytes)
        host.fails = lambda number: out_of_memory()
        with pytest.raises(MemoryBudgetError) as caught:
            getattr(vae, direction)(x)
        del caught
        assert meter.current_bytes == 0
    assert len(held) > 3
    assert len(set(held)) == 1  # the output, before the first attempt and after each


def events_of(vae: VAE, host: FakeHost, direction: str, x: Tensor, **options: Any) -> list[str]:
    """In order: "check" where the run may be stopped, "work" where some was reported."""
    events: list[str] = []
    host.stops = lambda: events.append("check") is not None
    getattr(vae, direction)(x, progress=lambda fraction: events.append("work"), **options)
    return events


@pytest.mark.usefixtures("no_collector")
@DIRECTIONS
def test_an_interruption_stops_within_one_strip(vae: VAE, host: FakeHost, direction: str) -> None:
    x = sample(direction, 2, side=64)
    events = events_of(vae, host, direction, x, tile_size=16)
    assert "work work" not in " ".join(events)
    checks = events.count("check")
    for stop_at in [1, 2, 3, *range(4, checks, 11), checks]:
        seen: list[str] = []
        host.stops = lambda seen=seen, stop_at=stop_at: [seen.append("check"), seen.count("check") == stop_at][1]
        with LiveTensorMeter() as meter:
            with pytest.raises(Stop) as caught:
                getattr(vae, direction)(x, progress=lambda fraction, seen=seen: seen.append("work"), tile_size=16)
            del caught
            assert meter.current_bytes == 0
        reached = [index for index, event in enumerate(events) if event == "check"][stop_at - 1]
        assert seen == events[: reached + 1]
    host.stops = lambda: False
    assert_exact(getattr(vae, direction)(x), getattr(vae, direction)(x, "untiled"))


@pytest.mark.parametrize("options", [{}, {"tile_size": 8}, {"memory": "6MiB"}])
@DIRECTIONS
def test_progress_rises_from_near_0_to_1(vae: VAE, direction: str, options: dict[str, Any]) -> None:
    told: list[float] = []
    getattr(vae, direction)(sample(direction, 2), progress=told.append, **options)
    assert told == sorted(told)
    assert 0 < told[0] < 0.02
    assert told[-1] == 1
    assert len(told) > 20


def test_progress_counts_work_and_not_strips(vae: VAE, host: FakeHost) -> None:
    """After each level stands the share of the operations that the levels so far take."""
    told: list[float] = []
    vae.decode(sample("decode"), tile_size=8, progress=told.append)
    plan = host.plans[-1]
    done = 0
    for level in plan.levels:
        done += level.need.work
        assert min(abs(fraction - done / plan.work) for fraction in told) < 1e-9
    assert plan.levels[-1].need.work > 0.5 * plan.work
    fine, coarse = set(told), list[float]()
    vae.decode(sample("decode"), tile_size=64, progress=coarse.append)
    assert len(coarse) < len(fine) / 4
    for fraction in coarse:
        assert min(abs(fraction - other) for other in fine) < 1e-4  # rounded to whole operations strip by strip


def test_progress_does_not_go_back_when_an_item_starts_again(vae: VAE, host: FakeHost) -> None:
    host.fails = lambda number: out_of_memory() if number in (1, 3) else None
    told: list[float] = []
    vae.encode(sample("encode", 2), progress=told.append)
    assert len(host.plans) == 1 + 3
    assert told == sorted(told)
    assert told[-1] == 1


@pytest.mark.parametrize("modest_work", [run_exact.MODEST_WORK, 1.0])
@DIRECTIONS
def test_the_weights_are_loaded_with_room_for_the_run(
    vae: VAE, host: FakeHost, monkeypatch: pytest.MonkeyPatch, direction: str, modest_work: float
) -> None:
    """Room for the plan that the free memory allows; for the fastest one where that takes much more work."""
    monkeypatch.setattr(run_exact, "MODEST_WORK", modest_work)
    run, x = getattr(vae, direction), sample(direction)
    run(x)
    fastest = host.plans[-1]
    run(x, memory=fastest.peak_bytes * 3 // 4)
    assert host.loads == [fastest.peak_bytes, host.plans[-1].peak_bytes]
    assert host.loads[1] < host.loads[0]
    others_go: set[bool] = set()
    for share in (4, 1.2, 1, 0.9, 0.8, 0.7, 0.6, 0.55, 0.5):
        monkeypatch.setattr(memory, "get_free_memory", lambda device, share=share: int(fastest.peak_bytes * share))
        try:
            run(x)
        except MemoryBudgetError:  # nothing fits: the others were sent away in vain, which no run can know
            break
        now = host.plans[-1]
        modest = now.work <= modest_work * fastest.work
        assert host.loads[-1] == (now if modest else fastest).peak_bytes
        others_go.add(not modest)
    assert others_go >= ({False, True} if modest_work == 1 else {False})
