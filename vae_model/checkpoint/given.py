"""Models that users hand over as modules: which of them are autoencoders, what is said of all others, and another model
of the same weights, as `load_model` would load their file: of one of ours, of diffusers, or of a training.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..families.ldm.autoencoder import AutoencodingEngine
from ..families.ldm.coder import Decoder, Encoder
from ..families.ldm.engine import AbstractAutoencoder
from ..families.settings import given_settings, known_settings
from ..families.table import FAMILIES, family_of
from ..notes import tell
from .candidates import TAKEN
from .difference import differences
from .keys import layout_named, to_layout
from .load import LoadedModel, build_empty, inspect_model, load_model


def autoencoder_in(given: Any, what: str) -> nn.Module:
    """The autoencoder that `given` is or holds: a VAE's model, behind what compiling and parallel training wrap it in.

    A bare Encoder or Decoder becomes half of one. InputError, beginning with `what`, for anything else.
    """
    model: Any = getattr(given, "first_stage_model", given)
    while isinstance(model, nn.Module):
        inner: Any = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    if isinstance(model, (Encoder, Decoder)):
        return _half(model)
    if isinstance(model, nn.Module) and any(hasattr(model, half) for half in ("encoder", "decoder", "finished")):
        return model
    raise InputError(f"{what}: expected a VAE of load_vae, its model or a training's module, got {_found(model)}")


def _found(given: Any) -> str:
    """What it is instead, and what to do."""
    if given is None:
        return "nothing: load a VAE by load_vae"
    if isinstance(given, (str, os.PathLike)):
        return f"the path {os.fspath(given)!r}: give the VAE first, then the path; load_vae opens a file"
    if isinstance(given, Mapping):
        return "a dictionary: open a state dict by load_vae and give what comes back"
    kind = type(given).__name__
    if not isinstance(given, nn.Module):
        return f"{kind}: load a VAE by load_vae"
    return f"{kind}, which has neither encoder nor decoder: give the autoencoder itself"


def _half(coder: Encoder | Decoder) -> AutoencodingEngine:
    """An autoencoder of which only this half is there."""
    double_z = getattr(coder, "double_z", True)
    regularizer = {"target": "DiagonalGaussianRegularizer" if double_z else "IdentityRegularizer"}
    engine = AutoencodingEngine(encoder_config=None, decoder_config=None, regularizer_config=regularizer)
    setattr(engine, "encoder" if isinstance(coder, Encoder) else "decoder", coder)
    return engine


def is_of_diffusers(model: nn.Module) -> bool:
    """Whether it is of one of diffusers' classes, whose names and configuration are those of its folders."""
    return type(model).__module__.partition(".")[0] == "diffusers"


@contextmanager
def with_average(model: Any) -> Generator[tuple[nn.Module, bool, bool], None, None]:
    """(the model that is to be read or saved, whether its weights are there for this moment alone, are an average).

    A training's module, or a model that keeps a moving average, is taken with its average, as what a training writes.
    An average that has not moved yet is none: weights may have been loaded since it was made.
    """
    if hasattr(model, "finished"):  # a module of `training`, which holds its model
        with model.finished() as whole:
            yield whole, True, getattr(model, "model_ema", None) is not None
    elif isinstance(model, AbstractAutoencoder) and model.use_ema and int(model.model_ema.num_updates):
        with model.ema_scope():
            yield model, True, True
    else:
        yield model, False, False


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
    with with_average(model) as (whole, passing, averaged):
        source: Any = whole
        is_foreign = is_of_diffusers(source)
        state = source.state_dict() if is_foreign else to_layout(source, layout_named(source))
        if passing:
            state = {key: tensor.detach().clone() for key, tensor in state.items()}
        told = known_settings(source.config) if is_foreign else family_of(source).settings(source)
        parts, family, own_config, _ = inspect_model(state, told)
        found = [] if is_foreign else differences(source, build_empty(parts, family, own_config))
        if found:
            raise InputError(
                f"load_vae: expected a model that weights and settings tell, got one that would be read with "
                f"{found[0]}: run it by its own encode and decode"
            )
    row = FAMILIES[family]
    both = row.join_hints(told, given_settings(config or {}, row, FAMILIES.values()))
    loaded = load_model(state, dtype=dtype, config=both, latent_format=latent_format)
    if not averaged:
        return loaded
    tell(type(model).__name__, [TAKEN])
    return replace(loaded, notes=(TAKEN, *loaded.notes))
