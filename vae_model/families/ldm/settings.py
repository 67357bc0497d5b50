"""Settings of an ldm autoencoder that no tensor's shape tells: what is written beside its weights, as `infer` reads it.

They stand as text in a safetensors header, under the names of ldm's and diffusers' arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ..hints import HALVES
from .layers import ResnetBlock
from .regularizer import IdentityRegularizer


def kl_settings(model: Any) -> dict[str, str]:
    """What a file of this model must hold beside its weights."""
    found: dict[str, str] = {}
    decoder: Any = getattr(model, "decoder", None)
    for name, values in (("norm_num_groups", _groups), ("dropout", _dropout)):
        halves = {half: set(values(getattr(model, half))) for half in HALVES if hasattr(model, half)}
        found |= _shortest(name, {half: some.pop() for half, some in halves.items() if len(some) == 1})
    if found.get("dropout") == "0.0":
        del found["dropout"]
    found |= {name: "True" for name in ("tanh_out", "give_pre_end") if getattr(decoder, name, False)}
    if decoder is None and isinstance(getattr(model, "regularization", None), IdentityRegularizer):
        found["double_z"] = "False"  # else the moments' channels are twice the decoder's, or not
    return found


def _groups(half: nn.Module) -> Iterator[int]:
    yield from (layer.num_groups for layer in half.modules() if isinstance(layer, nn.GroupNorm))


def _dropout(half: nn.Module) -> Iterator[float]:
    yield from (float(layer.dropout.p) for layer in half.modules() if isinstance(layer, ResnetBlock))


def _shortest(name: str, values: Mapping[str, object]) -> dict[str, str]:
    """One entry where the halves agree, else one for each."""
    if len({*values.values()}) == 1:
        return {name: str(next(iter(values.values())))}
    return {f"{half}_{name}": str(value) for half, value in values.items()}
