"""What may be stored of a level, and what is computed again instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..program import Op
from ..schedule import LevelSchedule


def ways_to_store(ops: Sequence[Op], rows: int, forced: str | None, host_budget: int) -> Iterator[LevelSchedule]:
    """From least work to most, everything on the device but where attention is streamed.

    Args:    ops: of the level. rows: of its strips. forced: the only kind that is wanted, if any.
             host_budget: bytes of host memory.
    """
    blocks = any(op.inner_plane for op in ops)
    upsamples = any(op.upsamples for op in ops) and blocks
    base = LevelSchedule(rows)
    if forced == "recompute":
        yield replace(base, store_hidden=not blocks, store_enlarged=not upsamples)
        return
    yield base
    if any(op.at_once for op in ops) and host_budget:
        yield replace(base, stream_attention=True, device_share=0.0)
    if forced is not None or not blocks:
        return
    # The upsampled plane that opens a level is its largest: the peak falls only when neither it nor a hidden one is
    # stored, so the two are given up together.
    yield replace(base, store_hidden=False, store_enlarged=not upsamples)
    yield replace(base, store_hidden=False, store_enlarged=not upsamples, store_blocks=False)
