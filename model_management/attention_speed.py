"""Which attention back end is the fastest here: timed once for every device, dtype and width, and remembered."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache
from statistics import median

import torch
from torch import Tensor

from ..vae_model.attention.backends import ATTENTION
from ..vae_model.kernels.profile import profile_of
from .oom import is_oom

WORTH_TIMING = 8192
"""Keys from which on choosing matters more than the trial costs."""
_REPEATS = 3


@cache
def fastest_first(names: tuple[str, ...], width: int, dtype: torch.dtype, device: torch.device) -> tuple[str, ...]:
    """`names` of the table of back ends, the fastest first; those that do not take the call come last."""
    return rank(names, ATTENTION, width, dtype, device)


def rank(
    names: tuple[str, ...],
    table: Mapping[str, Callable[..., Tensor]],
    width: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[str, ...]:
    """Time every back end on a small call of the same kind, in turn, after a warm-up."""
    queries, keys = profile_of(device.type).trial_tokens
    q = torch.zeros((1, queries, width), dtype=dtype, device=device)
    k = torch.zeros((1, keys, width), dtype=dtype, device=device)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(_REPEATS + 1):
        for name in names:
            try:
                started = time.perf_counter()
                table[name](q, k, k, max_bytes=None)
                _wait_for(device)
                seconds[name].append(time.perf_counter() - started)
            except (RuntimeError, MemoryError, NotImplementedError) as error:
                if not isinstance(error, NotImplementedError) and not is_oom(error):
                    raise
                seconds[name].append(float("inf"))
    return tuple(sorted(names, key=lambda name: median(seconds[name][1:])))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
