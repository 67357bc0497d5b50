"""Gradient checkpointing: the blocks of a KL autoencoder are computed again on the way back instead of being kept."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..families.ldm.layers import AttnBlock, ResnetBlock


class _Recomputed:
    """A block's forward that keeps its input only; values and gradients stay the same."""

    def __init__(self, forward: Any) -> None:
        self.forward = forward

    def __call__(self, *inputs: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return self.forward(*inputs)
        return cast(Tensor, checkpoint(self.forward, *inputs, use_reentrant=False))


def recompute_blocks(model: nn.Module) -> None:
    """Make every residual and attention block of `model` compute its inside again for the gradients."""
    for layer in model.modules():
        if isinstance(layer, ResnetBlock | AttnBlock):
            layer.forward = _Recomputed(layer.forward)  # pyright: ignore[reportAttributeAccessIssue]
