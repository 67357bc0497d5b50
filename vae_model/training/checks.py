"""After which batches a training is judged and saved, and how many batches some epochs are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .crops import Timetable

Epochs = Callable[[int], int]
"""Whole epochs in the first so many batches."""


def is_due(done: int, total: int, every: int, accumulate: int = 1, epochs: Epochs | None = None) -> bool:
    """Whether there is a check after `done` batches.

    At the end always; else at the first complete step (of `accumulate` batches) that has reached a multiple of `every`
    batches or, where `epochs` is given, the end of one.
    """
    if done == total:
        return True
    if done % accumulate:
        return False
    before = max(0, done - accumulate)
    return done // every > before // every or (epochs is not None and epochs(done) > epochs(before))


def epochs_of(timetable: Timetable, pictures: int) -> Epochs:
    """How often every one of the `pictures` has been seen, by batches."""
    return lambda batches: timetable.batch(batches)[0].start // pictures


def batches_of(epochs: int, pictures: int, stages: Sequence[tuple[float, int, int]], processes: int = 1) -> int:
    """The batches in which every picture is seen `epochs` times, over all stages (share, crop, batch size)."""
    ends = [share for share, _, _ in stages[1:]] + [1.0]
    per_batch = sum((end - start) * size for (start, _, size), end in zip(stages, ends, strict=True)) * processes
    batches = math.ceil(epochs * pictures / per_batch - 1e-9)  # less than rounding makes of a whole number
    while Timetable(stages, batches, processes).batch(batches)[0].start < epochs * pictures:
        batches += 1  # the stages begin at whole batches
    return batches
