"""The first number of a training that is none: which one, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MOST_SKIPPED = 30
"""Steps in a row that a gradient scaler may leave out: it halves its scale each time, from 65536 to below 1e-4."""


class DivergedError(RuntimeError):
    """A loss, gradient or weight that is not finite; one line."""

    __module__ = "exact_vae"


def broken(values: Mapping[str, Tensor], largest: Mapping[str, float] | None = None) -> list[str]:
    """What is not finite among named tensors, as "nan in name"; waits once for a GPU.

    Args:    largest: of some names, what their values may be at most: what the file that they go into can hold.
    """
    limits = largest or {}
    local: dict[str, Any] = {
        name: (value.to_local() if hasattr(value, "to_local") else value).detach()  # pyright: ignore
        for name, value in values.items()
    }
    sound = [
        (value.abs() <= limits[name]).all() if name in limits else value.isfinite().all()
        for name, value in local.items()
    ]
    if not sound or bool(torch.stack(sound).all()):
        return []
    return [f"{_kind(value)} in {name}" for (name, value), fine in zip(local.items(), sound, strict=True) if not fine]


def _kind(value: Tensor) -> str:
    if bool(value.isnan().any()):
        return "nan"
    return f"{float(value.abs().max()):.3g}"


def losses_of(log: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the logged values that are losses: only they have to be finite."""
    return {name: value for name, value in log.items() if name.endswith("loss")}


def floating_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict that can hold a NaN."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()}


class SkippedSteps:
    """Counts the steps in a row that a gradient scaler left out, by optimizer: a few are how it finds its scale."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def too_many(self, optimizer: Any, skipped: bool) -> bool:
        """Note one step."""
        self._counts[id(optimizer)] = self._counts.get(id(optimizer), 0) + 1 if skipped else 0
        return self._counts[id(optimizer)] > MOST_SKIPPED
