"""Learning rates as shares of the peak, from the batch number alone, so that a resumed training needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable

SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": lambda done, final: 1.0,
    "linear": lambda done, final: 1.0 - (1.0 - final) * done,
    "cosine": lambda done, final: final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * done)),
}
"""(share of the training that is done, final share) -> share of the peak rate."""


def rate_share(schedule: str, batch: int, batches: int, warm_up: int, final_share: float) -> float:
    """The share of the peak rate at batch number `batch` of `batches`: warm-up times curve."""
    rising = min(1.0, (batch + 1) / warm_up) if warm_up else 1.0
    return rising * SCHEDULES[schedule](min(1.0, batch / batches), final_share)
