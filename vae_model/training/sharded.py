"""Training with the weights spread over processes: torch's `fully_shard` (FSDP2) under Lightning's strategy."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def shard_parts(model: nn.Module, mesh: Any) -> None:
    """Spread the parameters of every part of an autoencoder (encoder, decoder, quant convolutions) over a mesh.

    The parts and not the whole: `encode` and `decode` call them one by one.
    """
    from torch.distributed.fsdp import fully_shard

    for part in model.children():
        if next(part.parameters(), None) is not None:
            fully_shard(part, mesh=mesh)


def spread_again(model: nn.Module) -> None:
    """Let go of the whole parameters that a forward pass put together, so that those seen are this process's shares.

    Models that are not spread stay as they are.
    """
    for part in model.children():
        reshard: Any = getattr(part, "reshard", None)
        if reshard is not None:
            reshard()


def whole_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with every spread tensor put together, in all processes; plain models' as it is."""
    return {
        name: tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore
        for name, tensor in model.state_dict().items()
    }


def without_weights(model: nn.Module) -> nn.Module:
    """A copy on the meta device, to be filled by `load_state_dict(..., assign=True)`."""
    with torch.no_grad():
        memo: dict[int, Any] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            empty = torch.empty_like(tensor, device="meta")
            memo[id(tensor)] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
        return copy.deepcopy(model, memo)
