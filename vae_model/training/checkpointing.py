"""Gradient checkpointing: the blocks of a KL autoencoder are computed again on the way back instead of being kept."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..families.ldm.layers import AttnBlock, ResnetBlock


def recompute_blocks(model: nn.Module) -> None:
    """Make every residual and attention block of `model` compute its inside again for the gradients."""
    for layer in model.modules():
        if isinstance(layer, ResnetBlock | AttnBlock):
            layer.forward = partial(_recomputed, layer.forward)  # pyright: ignore[reportAttributeAccessIssue]


def _recomputed(forward: Any, *inputs: Any) -> Tensor:
    """A block's forward that keeps its input only; values and gradients stay the same."""
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return cast(Tensor, checkpoint(forward, *inputs, use_reentrant=False))
