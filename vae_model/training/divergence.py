"""The first number of a training that is none: which one, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


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
