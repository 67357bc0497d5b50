"""Models that users hand over as modules: which of them are autoencoders, and what is said of all others."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..errors import InputError
from ..families.ldm.autoencoder import AutoencodingEngine
from ..families.ldm.coder import Decoder, Encoder
from ..families.ldm.engine import AbstractAutoencoder

_WAYS = "a VAE of load_vae, its model or a training's module"


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
    raise InputError(f"{what}: expected {_WAYS}, got {_found(model)}")


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
def with_average(model: Any) -> Generator[tuple[nn.Module, bool], None, None]:
    """(the model that is to be read or saved, whether its weights are there for this moment alone).

    A training's module, or a model that keeps a moving average, is taken with its average, as what a training writes.
    An average that has not moved yet is none: weights may have been loaded since it was made.
    """
    if hasattr(model, "finished"):  # a module of `training`, which holds its model
        with model.finished() as whole:
            yield whole, True
    elif isinstance(model, AbstractAutoencoder) and model.use_ema and int(model.model_ema.num_updates):
        with model.ema_scope():
            yield model, True
    else:
        yield model, False


def has_average(model: Any) -> bool:
    """Whether `with_average` takes one."""
    average = getattr(model, "model_ema", None)
    return average is not None and (hasattr(model, "finished") or bool(int(average.num_updates)))
