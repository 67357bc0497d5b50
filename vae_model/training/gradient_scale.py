"""Gradients that wait for more batches while the scale of 16-bit gradients changes between them and their step."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def rescaled(trainer: Any, waiting: nn.Module | None) -> Generator[None, None, None]:
    """Keep the gradients that `waiting` has collected in the scale of the trainer's scaler, where that changes inside.

    A scaler sets its scale anew at every step of any optimizer. The discriminator's step comes after the autoencoder's:
    of accumulated batches all but the last would count half after the scale has grown, and twice after an overflow.
    """
    scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None or waiting is None:
        yield
        return
    before = scaler.get_scale()
    yield
    factor = scaler.get_scale() / before
    if factor != 1:
        for parameter in waiting.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
