"""Learning rates as shares of the peak, from the batch number alone, so that a resumed training needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable


def _constant(progress: float, final_share: float) -> float:
    return 1.0


def _linear(progress: float, final_share: float) -> float:
    return 1.0 - (1.0 - final_share) * progress


def _cosine(progress: float, final_share: float) -> float:
    return final_share + (1.0 - final_share) * 0.5 * (1.0 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[float, float], float]] = {"constant": _constant, "linear": _linear, "cosine": _cosine}
"""(share of the training that is done, final share) -> share of the peak rate."""


def rate_share(schedule: str, batch: int, batches: int, warm_up: int, final_share: float) -> float:
    """The share of the peak rate at batch number `batch` of `batches`: warm-up times curve."""
    rising = min(1.0, (batch + 1) / warm_up) if warm_up else 1.0
    return rising * SCHEDULES[schedule](min(1.0, batch / batches), final_share)
