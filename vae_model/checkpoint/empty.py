"""Modules on the meta device have no numbers, yet PyTorch draws them: half of the time that building one takes.

Source: PyTorch's tutorial on skipping initialisation (BSD), read as a fact: `torch.nn.init` passes function modes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode


class WithoutNumbers(TorchFunctionMode):
    """While it is active, `torch.nn.init` leaves tensors as they are."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """One call of PyTorch's, which goes on, or the tensor of one of `torch.nn.init`."""
        named = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)
