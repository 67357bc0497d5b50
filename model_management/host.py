"""The host of a VAE that runs on its own, without ComfyUI: this process and its devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..vae_model.exact.plan.casts import cast_bytes
from ..vae_model.exact.plan.plan import Plan
from ..vae_model.exact.plan.search import make_plan
from ..vae_model.exact.program import Program
from ..vae_model.exact.stream.context import own_weights
from ..vae_model.host import ENDLESS, Host, Report
from . import attention, loaded, memory, oom

__all__ = ["Host", "LocalHost"]

RESERVE_SHARE = 0.1
RESERVE_BYTES = 256 * 1024**2
"""Kept free on the device: a convolution library's workspace, fragmentation, other programs."""
HOST_SHARE = 0.5
"""Of the free main memory, for strips that wait there; pinned memory beyond half of it is refused by some systems."""


def device_reserve(free_bytes: int) -> int:
    """Bytes to leave free: a tenth, and a quarter GiB unless that is most of what there is."""
    return max(int(RESERVE_SHARE * free_bytes), min(RESERVE_BYTES, free_bytes // 4))


def is_main_memory(device: torch.device) -> bool:
    """Whether the device's memory is the main memory: strips then have nowhere else to wait."""
    return device.type == "cpu"


class LocalHost(Host):
    """Devices, memory and attention of this process; the methods are described in `Host`."""

    def __init__(self, check_interrupt: Callable[[], None] | None = None, *, host_budget: int | None = None) -> None:
        """`check_interrupt`: called where a run may stop; it raises to stop it. None: runs are never stopped.

        `host_budget`: bytes of main memory in which strips may wait, None for what the rule gives them.
        """
        self._check_interrupt, self._host_budget = check_interrupt, host_budget
        self._best: tuple[tuple[Any, ...], Plan] | None = None
        """What was asked last without end of memory, and its plan."""

    def load_model(self, model: nn.Module, device: torch.device, memory_required: int = 0) -> bool | None:
        loaded.load_model(model, device, memory_required)
        return True

    def get_free_memory(self, device: torch.device) -> int:
        return memory.get_free_memory(device)

    def soft_empty_cache(self) -> None:
        memory.soft_empty_cache()

    def is_oom(self, error: BaseException) -> bool:
        return oom.is_oom(error)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int | None = None) -> Tensor:
        return attention.attend(q, k, v, check=self.check_interrupt, max_bytes=max_bytes)

    def fused_attention(self, channels: int, dtype: torch.dtype, device: torch.device) -> bool:
        return attention.is_fused(channels, dtype, device)

    def budgets(self, device: torch.device, budget: int | None, sharing: int = 1) -> tuple[int, int]:
        """See `Host`: the one rule of runs, nodes and the command line."""
        if budget is None:
            free_bytes = self.get_free_memory(device) // (sharing if device.type == "cpu" else 1)
            budget = max(1, free_bytes - device_reserve(free_bytes))
        if self._host_budget is not None:
            return budget, self._host_budget
        waiting = 0 if is_main_memory(device) else self.get_free_memory(torch.device("cpu")) // sharing
        return budget, int(HOST_SHARE * waiting)

    def make_plan(
        self,
        program: Program,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        budget: int | None,
        strip_rows: int | None = None,
    ) -> Plan:
        beside = cast_bytes(program, dtype, lambda layer: self.is_cast(layer, dtype, device))
        asked = (program, shape, dtype, device, strip_rows, beside)
        best = self._best[1] if self._best is not None and self._best[0] == asked else None
        device_budget, host_budget = (ENDLESS, 0) if budget == ENDLESS else self.budgets(device, budget)
        if best is not None and best.peak_bytes <= device_budget:
            # The plan that nothing keeps short is the best of all that fit.
            return replace(best, device_budget=device_budget, host_budget=host_budget)
        plan = make_plan(
            program, shape, dtype, device_budget, host_budget, device_type=device.type, strip_rows=strip_rows,
            fused_attention=lambda channels: self.fused_attention(channels, dtype, device), weights_beside=beside,
        )  # fmt: skip
        if budget == ENDLESS:
            self._best = asked, plan
        return plan

    def weights(self, layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
        return own_weights(layer, like)

    def is_cast(self, layer: nn.Module, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether `weights` makes those of a run there anew; the whole model is on the device by then."""
        weight = cast(Tensor, layer.weight)
        return weight.dtype != dtype and not weight.is_meta  # a model without weights will have them in its run's

    def tell(self, report: Report, fraction: float, done: bool) -> None:
        pass

    def check_interrupt(self) -> None:
        if self._check_interrupt is not None:
            self._check_interrupt()
