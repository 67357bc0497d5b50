"""What a VAE asks of the program it runs in. `model_management.host` implements it; this file only names it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from .exact.program import Program
from .exact.schedule import Schedule

if TYPE_CHECKING:
    from .report import Report


class PlanProtocol(Protocol):
    """What a run needs of a plan."""

    @property
    def schedule(self) -> Schedule:
        """How every level is run."""
        ...

    @property
    def peak_bytes(self) -> int:
        """Predicted bytes on the device, above weights, input and finished output."""
        ...

    @property
    def host_bytes(self) -> int:
        """Predicted bytes in main memory, of strips that wait there."""
        ...

    @property
    def moved_bytes(self) -> int:
        """Predicted bytes copied between the device and main memory."""
        ...

    @property
    def device_budget(self) -> int:
        """Bytes on the device that the plan was made for."""
        ...

    @property
    def work(self) -> int:
        """Predicted floating point operations."""
        ...


class Host(Protocol):
    """Devices, memory and attention of the surroundings. All sizes are bytes."""

    def load_model(self, model: nn.Module, device: torch.device, memory_required: int = 0) -> None:
        """Put `model` on `device`; make room for it and for `memory_required` by unloading others, oldest use first."""
        ...

    def get_free_memory(self, device: torch.device) -> int:
        """Bytes that can be allocated on `device` now."""
        ...

    def soft_empty_cache(self) -> None:
        """Give cached but unused blocks back to the device."""
        ...

    def is_oom(self, error: BaseException) -> bool:
        """Whether `error` is some back end's way of saying that memory ran out."""
        ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, max_bytes: int | None = None) -> Tensor:
        """Attention by the back end that fits here: (B, N, C) each -> (B, N, C).

        `max_bytes`: of scores at once, where they must be written down; None for what fits into the free memory.
        """
        ...

    def fused_attention(self, channels: int, dtype: torch.dtype, device: torch.device) -> bool:
        """Whether one head of so many channels has a kernel there that writes no scores down."""
        ...

    def make_plan(
        self,
        program: Program,
        shape: tuple[int, int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        limit: int | None,
        strip_rows: int | None = None,
        *,
        ample: bool = False,
    ) -> PlanProtocol:
        """A plan for an input of `shape` (B, C, H, W) within `limit` bytes, None for what is free now.

        `strip_rows` fixes the height of strips; `ample` plans as if memory had no end. MemoryBudgetError where nothing
        fits.
        """
        ...

    def weights(self, layer: nn.Module, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a layer with the dtype and device of `like`; they stay as they are until released."""
        ...

    def check_interrupt(self) -> None:
        """Raise the host's own interruption when the user has cancelled."""
        ...

    def tell(self, report: Report, fraction: float, done: bool) -> None:
        """Show how far a run is, 0..1; `done`: it ended, one way or another. Called often and must never fail."""
        ...
