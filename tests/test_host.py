"""LocalHost is a Host, and each of its methods does what the Protocol says."""

import inspect

import pytest
import torch
from exact_vae.model_management import Host, LocalHost, get_free_memory, loaded, memory
from exact_vae.vae_model.attention import pytorch_attention
from torch import nn

METHODS = [name for name, value in vars(Host).items() if inspect.isfunction(value) and not name.startswith("_")]


def test_the_protocol_has_the_methods_these_tests_cover() -> None:
    assert sorted(METHODS) == [
        "attend",
        "check_interrupt",
        "get_free_memory",
        "is_oom",
        "load_model",
        "soft_empty_cache",
    ]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_implemented_with_the_same_signature(name: str) -> None:
    assert name in vars(LocalHost)
    assert inspect.signature(getattr(LocalHost, name)) == inspect.signature(getattr(Host, name))


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
