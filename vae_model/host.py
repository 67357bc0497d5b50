"""What a VAE asks of the program it runs in. `model_management.host` implements it; this file only names it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn


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

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention by the back end that fits here: (B, N, C) each -> (B, N, C)."""
        ...

    def check_interrupt(self) -> None:
        """Raise the host's own interruption when the user has cancelled."""
        ...
