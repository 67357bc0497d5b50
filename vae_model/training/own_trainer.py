"""What a Trainer of one's own was told and what manual steps have to do themselves: accumulate, clip, count."""

from __future__ import annotations

import math
from typing import Any

from ..errors import InputError


class TrainerWords:
    """Two settings of a Trainer while a module follows them itself; Lightning refuses them beside manual steps."""

    def __init__(self) -> None:
        self._taken: dict[str, Any] = {}

    def take(self, trainer: Any, module: Any) -> None:
        """Move `accumulate_grad_batches` and `gradient_clip_val` from the Trainer into the module."""
        clip, every = trainer.gradient_clip_val, trainer.accumulate_grad_batches
        algorithm = str(getattr(trainer.gradient_clip_algorithm, "value", trainer.gradient_clip_algorithm or "norm"))
        if clip and algorithm != "norm":
            raise InputError(f"gradient_clip_algorithm: expected norm, got {algorithm}: leave it out")
        if clip:
            self._taken["gradient_clip_val"], trainer.gradient_clip_val = clip, None
            module.clip = float(clip)
        if every != 1:
            self._taken["accumulate_grad_batches"], trainer.accumulate_grad_batches = every, 1
            module.accumulate = int(every)

    def give_back(self, trainer: Any) -> None:
        """Leave the Trainer as it was."""
        for name, value in self._taken.items():
            setattr(trainer, name, value)
        self._taken = {}


def batches_of_trainer(trainer: Any, optimizers: int) -> int:
    """How many batches a Trainer is going to run, 1 where it knows no end. Its `max_steps` counts all optimisers'."""
    if trainer.max_steps is not None and trainer.max_steps > 0:
        return max(1, trainer.max_steps // optimizers)
    batches = trainer.num_training_batches * (trainer.max_epochs or 0)
    return int(batches) if 0 < batches < math.inf else 1
