"""LocalHost is a Host, and each of its methods does what the Protocol says."""

import inspect
from typing import Any

import pytest
import torch
from exact_vae.model_management import Host, LocalHost, get_free_memory, host, loaded, memory
from exact_vae.tests.exact.programs import build_program
from exact_vae.vae_model.attention.backends import pytorch_attention
from exact_vae.vae_model.errors import MemoryBudgetError
from exact_vae.vae_model.exact.plan.plan import Plan
from exact_vae.vae_model.exact.program import Program
from exact_vae.vae_model.host import ENDLESS
from torch import nn

METHODS = [name for name, value in vars(Host).items() if inspect.isfunction(value) and not name.startswith("_")]


def test_the_protocol_has_the_methods_these_tests_cover() -> None:
    assert sorted(METHODS) == [
        "attend",
        "budgets",
        "check_interrupt",
        "fused_attention",
        "get_free_memory",
        "is_oom",
        "load_model",
        "make_plan",
        "soft_empty_cache",
        "tell",
        "weights",
    ]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_implemented_with_the_same_signature(name: str) -> None:
    assert name in vars(LocalHost)
    ours, wanted = (inspect.signature(getattr(kind, name)) for kind in (LocalHost, Host))
    assert ours.parameters == wanted.parameters
    assert ours.return_annotation == wanted.return_annotation


CPU = torch.device("cpu")
SHAPE = (1, 4, 16, 16)


@pytest.fixture
def program(small_model: Any) -> Program:
    return build_program(small_model.decoder)


def test_a_plan_keeps_to_the_limit_and_ample_knows_none(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "get_free_memory", lambda device: 1000)  # Where there is a limit, nobody asks.
    host = LocalHost()
    ample = host.make_plan(program, SHAPE, torch.float32, CPU, ENDLESS)
    assert isinstance(ample, Plan)
    tight = host.make_plan(program, SHAPE, torch.float32, CPU, ample.peak_bytes - 1)
    assert tight.peak_bytes < ample.peak_bytes
    assert tight.device_budget == ample.peak_bytes - 1
    again = host.make_plan(program, SHAPE, torch.float32, CPU, ample.peak_bytes)
    assert (again.schedule, again.peak_bytes) == (ample.schedule, ample.peak_bytes)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("share", [1.0, 1.001, 3.0])
def test_a_plan_that_fits_is_made_once(
    program: Program, monkeypatch: pytest.MonkeyPatch, kind: str, share: float
) -> None:
    """And is the one that would have been made: also where strips may wait in host memory."""
    monkeypatch.setattr(memory, "get_free_memory", lambda device: 2**40)
    device, host = torch.device(kind), LocalHost()
    ample = host.make_plan(program, SHAPE, torch.float32, device, ENDLESS)
    limit = int(share * ample.peak_bytes)
    expected = LocalHost().make_plan(program, SHAPE, torch.float32, device, limit)
    monkeypatch.setattr("exact_vae.model_management.host.make_plan", lambda *_, **__: pytest.fail("planned again"))
    assert host.make_plan(program, SHAPE, torch.float32, device, limit) == expected
    assert host.make_plan(program, SHAPE, torch.float32, device, None).schedule == ample.schedule


def test_another_shape_is_planned_anew(program: Program) -> None:
    host = LocalHost()
    ample = host.make_plan(program, SHAPE, torch.float32, CPU, ENDLESS)
    larger = host.make_plan(program, (1, 4, 32, 24), torch.float32, CPU, 2**40)
    assert larger.peak_bytes > ample.peak_bytes
    assert larger == LocalHost().make_plan(program, (1, 4, 32, 24), torch.float32, CPU, 2**40)


def test_without_a_limit_a_plan_has_what_is_free_less_a_reserve(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "get_free_memory", lambda device: 8 * 2**30)
    plan = LocalHost().make_plan(program, SHAPE, torch.float32, CPU, None)
    assert plan.device_budget == 8 * 2**30 - int(8 * 2**30 * 0.1)
    assert plan.host_budget == 0  # strips of a CPU's run have nowhere else to wait
    monkeypatch.setattr(memory, "get_free_memory", lambda device: 1000)
    with pytest.raises(MemoryBudgetError, match=r"^128 x 128: expected a budget of at least "):
        LocalHost().make_plan(program, SHAPE, torch.float32, CPU, None)


@pytest.mark.parametrize(
    ("free_bytes", "reserve"), [(100 * 2**30, 10 * 2**30), (1 * 2**30, 256 * 2**20), (400, 100), (0, 0)]
)
def test_the_reserve_is_a_tenth_or_a_quarter_gib_but_never_most_of_what_there_is(free_bytes: int, reserve: int) -> None:
    assert host.device_reserve(free_bytes) == reserve


def test_strips_wait_in_half_of_the_main_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        memory, "get_free_memory", lambda device: 4 * 2**30 if torch.device(device).type == "cpu" else 2**30
    )
    assert LocalHost().budgets(torch.device("cuda"), 12345) == (12345, 2 * 2**30)
    assert LocalHost().budgets(torch.device("cuda"), None) == (2**30 - 256 * 2**20, 2 * 2**30)


def test_a_strip_height_reaches_the_plan(program: Program) -> None:
    plan = LocalHost().make_plan(program, SHAPE, torch.float32, CPU, None, 24)
    assert [level.strip_rows for level in plan.schedule] == [3, 6, 12, 24]


def test_load_model_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(loaded, "load_model", lambda *args: calls.append(args))
    monkeypatch.setattr(memory, "soft_empty_cache", lambda: calls.append("emptied"))
    host, model, device = LocalHost(), nn.Linear(1, 1), torch.device("cpu")
    host.load_model(model, device, 5)
    host.load_model(model, device)
    host.soft_empty_cache()
    assert calls == [(model, device, 5), (model, device, 0), "emptied"]


def test_free_memory_is_that_of_the_device() -> None:
    assert LocalHost().get_free_memory(torch.device("privateuseone", 0)) == get_free_memory("privateuseone")


def test_is_oom() -> None:
    assert LocalHost().is_oom(MemoryError())
    assert not LocalHost().is_oom(ValueError())


def test_attend_equals_pytorch() -> None:
    q, k, v = torch.randn(3, 2, 37, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    # float64: 16 channels and 37 positions are summed in another order, a few units in the last place.
    torch.testing.assert_close(LocalHost().attend(q, k, v), pytorch_attention(q, k, v), rtol=1e-12, atol=1e-12)


def test_check_interrupt_calls_what_was_given_and_else_does_nothing() -> None:
    class Cancelled(Exception):
        pass

    def cancel() -> None:
        raise Cancelled

    assert LocalHost().check_interrupt() is None
    with pytest.raises(Cancelled):
        LocalHost(check_interrupt=cancel).check_interrupt()
