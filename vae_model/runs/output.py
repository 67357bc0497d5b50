"""The result of a run: made outside of inference mode, filled inside of it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def plain_output(shape: tuple[int, ...], device: torch.device) -> Generator[Tensor, None, None]:
    """Inference mode, and the float32 tensor of that shape that is to be filled within it.

    A tensor made in inference mode can never be saved for a backward pass, so whoever trains on a result would have to
    copy it first. One made before is a plain tensor without gradient, and writing into it costs the same. Where the
    caller is in inference mode himself, so is the result.
    """
    out = torch.empty(shape, dtype=torch.float32, device=device)
    with torch.inference_mode():
        yield out
