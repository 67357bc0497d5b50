"""A model in memory as `load_model` would load its file: an autoencoder of ours, of diffusers, or a training's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..families.table import FAMILIES, family_of
from ..notes import tell
from .candidates import TAKEN
from .difference import differences
from .given import autoencoder_in, has_average, is_of_diffusers, with_average
from .load import LoadedModel, build_empty, inspect_model, load_model
from .save import layout_named, to_layout


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
        source: Any = whole
        is_foreign = is_of_diffusers(source)
        state = source.state_dict() if is_foreign else to_layout(source, layout_named(source))
        if passing:
            state = {key: tensor.detach().clone() for key, tensor in state.items()}
        told = {**source.config} if is_foreign else family_of(source).settings(source)
        parts, family, own_config, _ = inspect_model(state, told)
        found = [] if is_foreign else differences(source, build_empty(parts, family, own_config))
        if found:
            raise InputError(
                f"load_vae: expected a model that weights and settings tell, got one that would be read with "
                f"{found[0]}: run it by its own encode and decode"
            )
    hints = ({key: str(value) for key, value in one.items()} for one in (told, config or {}))
    both = FAMILIES[family].join_hints(*hints)
    loaded = load_model(state, dtype=dtype, config=both, latent_format=latent_format)
    if not has_average(model):
        return loaded
    tell(type(model).__name__, [TAKEN])
    return replace(loaded, notes=(TAKEN, *loaded.notes))
