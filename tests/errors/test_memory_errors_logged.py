"""Memory that runs out is one line of the log: where the run goes on in less, and where it cannot."""

from __future__ import annotations

import logging
import traceback
from typing import Any

import pytest
import torch
from exact_vae.model_management.comfy_host import ComfyHost
from exact_vae.model_management.exact_vae import make_exact
from exact_vae.tests.stub_host.host import StubHost
from exact_vae.vae_model.errors import MemoryBudgetError
from torch import Tensor

OURS = 4
"""Lines of the traceback that are ours: the method that was called, and the place that lets the error through."""


@pytest.fixture
def attend(stub_host: StubHost, monkeypatch: pytest.MonkeyPatch) -> Any:
    """attend(times): memory runs out in so many attempts."""
    error, own, left = stub_host.modules["comfy.model_management"].OOM_EXCEPTION, ComfyHost.attend, [0]

    def failing(self: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if left[0] > 0:
            left[0] -= 1
            raise error("out of memory")
        return own(self, q, k, v)

    monkeypatch.setattr(ComfyHost, "attend", failing)
    return lambda times: left.__setitem__(0, times)


@pytest.mark.parametrize("times", [1, 2])
def test_a_run_that_starts_again_says_so_once(
    stub_host: StubHost, attend: Any, times: int, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_exact(stub_host.make_vae())
    attend(times)
    made.decode(torch.randn(1, 4, 32, 32))
    told = [record for record in caplog.records if "memory ran out" in record.getMessage()]
    assert [record.levelno for record in told] == [logging.WARNING] * times
    assert all("\n" not in record.getMessage() and "started again" in record.getMessage() for record in told)


def test_the_error_that_ends_a_run_brings_no_other(stub_host: StubHost, attend: Any) -> None:
    made = make_exact(stub_host.make_vae())
    attend(1000)
    with pytest.raises(MemoryBudgetError, match=r"ran out with .* free: free memory or use a smaller image") as raised:
        made.decode(torch.randn(1, 4, 32, 32))
    check_log(raised.value)


def test_too_little_memory_from_the_start_brings_no_other(stub_host: StubHost) -> None:
    made = make_exact(stub_host.make_vae(), "100KiB")
    with pytest.raises(MemoryBudgetError, match="expected a budget of at least") as raised:
        made.encode(torch.rand(1, 256, 256, 3))
    check_log(raised.value)


def check_log(error: MemoryBudgetError) -> None:
    """What the host would log: the line at its end, and no way through the engine before it."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    assert lines[-1] == f"exact_vae.MemoryBudgetError: {error}"
    assert not any("exception" in line and line.endswith(":") for line in lines)
    files = [line for line in lines if line.lstrip().startswith("File ")]
    assert not [line for line in files if "vae_model" in line or "planner" in line]
    assert len(files) <= OURS
