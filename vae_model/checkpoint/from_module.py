"""A model in memory as `load_model` would load its file: an autoencoder of ours, of diffusers, or a training's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..families.table import FAMILIES, family_of
from ..notes import tell
from .averaged import TAKEN, has_average, with_average
from .difference import differences
from .given import autoencoder_in, is_of_diffusers
from .load import LoadedModel, build_empty, inspect_model, load_model
from .save import default_layout, to_layout


def load_module(
    given: nn.Module,
    *,
    dtype: torch.dtype | None = None,
    config: Mapping[str, Any] | None = None,
    latent_format: str | None = None,
) -> LoadedModel:
    """Another model of the same weights and settings, in eval mode; `given` stays as it is.

    Weights are shared where the dtype does not change. Those of a training, or of a model with a moving average, are
    copied, for the averaged ones are taken and put in for a moment only. `config`, `latent_format`: as for
    `load_model`. InputError for what is no autoencoder, and for one that computes something else than its weights and
    settings tell.
    """
    model: Any = autoencoder_in(given, "load_vae")
    with with_average(model) as (whole, passing):
        state = _state(whole)
        if passing:
            state = {key: tensor.detach().clone() for key, tensor in state.items()}
        loaded = _load(whole, state, dtype, config, latent_format)
    if not has_average(model):
        return loaded
    tell(type(model).__name__, [TAKEN])
    return replace(loaded, notes=(TAKEN, *loaded.notes))


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors under the names of a file."""
    return model.state_dict() if is_of_diffusers(model) else to_layout(model, default_layout(model))


def _load(
    model: Any,
    state: dict[str, Tensor],
    dtype: torch.dtype | None,
    config: Mapping[str, Any] | None,
    latent_format: str | None,
) -> LoadedModel:
    told = {**model.config} if is_of_diffusers(model) else family_of(model).settings(model)
    parts, family, own_config, _ = inspect_model(state, told)
    if not is_of_diffusers(model):
        found = differences(model, build_empty(parts, family, own_config))
        if found:
            raise InputError(
                f"load_vae: expected a model that weights and settings tell, got one that would be read with "
                f"{found[0]}: run it by its own encode and decode"
            )
    told, given = ({key: str(value) for key, value in one.items()} for one in (told, config or {}))
    both = FAMILIES[family].join_hints(told, given)
    return load_model(state, dtype=dtype, config=both, latent_format=latent_format)
