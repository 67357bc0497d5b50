"""Settings that no tensor's shape tells: what of a model is written beside its weights, as `hints` reads it back.

They stand as text in a safetensors header, under the names of ldm's and diffusers' arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ..families.hints import HALVES, UNKNOWN
from ..families.ldm.flux2 import AutoencoderFlux2
from ..families.ldm.layers import ResnetBlock
from ..families.ldm.regularizer import IdentityRegularizer
from ..families.tiny.model import AutoencoderTiny


def settings_of(model: nn.Module) -> dict[str, str]:
    """What a file of this model must hold beside its weights, as text."""
    if isinstance(model, AutoencoderTiny):
        return _of_tiny(model)
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
    if isinstance(model, AutoencoderFlux2):
        found["batch_norm_eps"] = repr(model.bn.eps)
    strategy = getattr(decoder, "merge_strategy", "learned")
    return found if strategy == "learned" else found | {"merge_strategy": strategy}


def _groups(half: nn.Module) -> Iterator[int]:
    yield from (layer.num_groups for layer in half.modules() if isinstance(layer, nn.GroupNorm))


def _dropout(half: nn.Module) -> Iterator[float]:
    yield from (float(layer.dropout.p) for layer in half.modules() if isinstance(layer, ResnetBlock))


def _shortest(name: str, values: Mapping[str, object]) -> dict[str, str]:
    """One entry where the halves agree, else one for each."""
    if len({*values.values()}) == 1:
        return {name: str(next(iter(values.values())))}
    return {f"{half}_{name}": str(value) for half, value in values.items()}


def _of_tiny(model: AutoencoderTiny) -> dict[str, str]:
    """All of them, the usual values too: a config.json that happens to lie beside the file is to change nothing."""
    found = {name: str(model.config[name]) for name in ("act_fn", "upsample_fn")}
    found["upsampling_scaling_factor"] = repr(model.config["upsampling_scaling_factor"])
    found |= {name: repr(float(getattr(model, name))) for name in ("latent_magnitude", "latent_shift")}
    found["force_upcast"] = str(bool(model.force_upcast))
    found["latent_format"] = model.latent_format or UNKNOWN
    if knows_scale(model):
        found |= {"vae_scale": repr(float(model.scaling_factor)), "vae_shift": repr(float(model.shift_factor))}
    return found


def knows_scale(model: AutoencoderTiny) -> bool:
    """Whether someone said what the latents are: by a name, or by other numbers than the arguments' defaults."""
    return model.latent_format is not None or (model.scaling_factor, model.shift_factor) != (1.0, 0.0)
