"""Attention back ends side by side: one head 512 wide, as in the middle of the autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import measure
import torch
from exact_vae.vae_model.attention.backends import ATTENTION
from exact_vae.vae_model.attention.streamed import streamed_attention
from torch import Tensor

WIDTH = 512
TOKENS = (4096, 16384, 65536)
BLOCK_TOKENS = 4096
"""Keys and values in one block of the streamed back end."""


def _streamed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    blocks: Iterator[tuple[Tensor, Tensor]] = zip(k.split(BLOCK_TOKENS, 1), v.split(BLOCK_TOKENS, 1), strict=True)
    return streamed_attention(q, blocks)


BACK_ENDS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {**ATTENTION, "streamed": _streamed}


def attention_rows(
    device: torch.device, dtypes: dict[str, torch.dtype], repeats: int, tokens: Sequence[int] = TOKENS
) -> list[dict[str, Any]]:
    """Median seconds and peak bytes of every back end, or why it failed; back ends take turns."""
    rows: list[dict[str, Any]] = []
    for name, dtype in dtypes.items():
        for count in tokens:
            generator = torch.Generator(device).manual_seed(0)
            shape = (1, count, WIDTH)
            q, k, v = (torch.randn(shape, generator=generator, device=device, dtype=dtype) for _ in range(3))
            rows += [row | {"tokens": count, "dtype": name} for row in _compare(q, k, v, repeats)]
    return rows


def _compare(q: Tensor, k: Tensor, v: Tensor, repeats: int) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for name in BACK_ENDS:
        # Twice: what a back end allocates once for good is not the memory of a call.
        measure.attempt(lambda name=name: BACK_ENDS[name](q, k, v))
        metered, failure = measure.attempt(
            lambda name=name: measure.metered_run(lambda: BACK_ENDS[name](q, k, v), q.device)
        )
        peak = None if metered is None else metered[1]
        del metered
        rows[name] = {"name": name, "seconds": [], "peak_bytes": peak, "failure": failure}
    for _ in range(repeats):
        for name, row in rows.items():
            if row["failure"] is None:
                timed, row["failure"] = measure.attempt(
                    lambda name=name: measure.time_run(lambda: BACK_ENDS[name](q, k, v), q.device)[1]
                )
                row["seconds"] += [] if timed is None else [timed]
    return [row | {"median_seconds": measure.median(row["seconds"])} for row in rows.values()]
