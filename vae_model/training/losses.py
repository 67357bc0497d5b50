"""The losses that a configuration may name, and those that people bring: a path's module is imported, and so run."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from torch import nn

from ..errors.listed import first_line, misspelt
from .arguments import call_checked
from .autoencoder_loss import AutoencoderLoss, DefaultLoss
from .config import ConfigError, one_of, require
from .given_loss import as_loss
from .perceptual import load_lpips

logger = logging.getLogger(__name__)


def lpips_with_discriminator(
    disc_start: int = 50001,
    logvar_init: float = 0.0,
    kl_weight: float = 1.0,
    pixelloss_weight: float = 1.0,
    disc_num_layers: int = 3,
    disc_in_channels: int = 3,
    disc_factor: float = 1.0,
    disc_weight: float = 1.0,
    perceptual_weight: float = 1.0,
    use_actnorm: bool = False,
    disc_conditional: bool = False,
    disc_loss: str = "hinge",
) -> AutoencoderLoss:
    """The arguments of latent-diffusion's loss as one of ours; where LPIPS cannot be had, SSIM and gradients say so."""
    if use_actnorm or disc_conditional:
        raise ConfigError("lossconfig: expected use_actnorm and disc_conditional false, got true: remove them")
    judge = (disc_weight, disc_start, disc_loss, disc_factor, 64, disc_num_layers, "batch", disc_in_channels)
    terms = _perceptual_terms(pixelloss_weight, perceptual_weight)
    return AutoencoderLoss(terms, kl_weight, "sum", logvar_init, False, *judge)


def general_lpips_with_discriminator(
    disc_start: int,
    logvar_init: float = 0.0,
    disc_num_layers: int = 3,
    disc_in_channels: int = 3,
    disc_factor: float = 1.0,
    disc_weight: float = 1.0,
    perceptual_weight: float = 1.0,
    disc_loss: str = "hinge",
    scale_input_to_tgt_size: bool = False,
    dims: int = 2,
    learn_logvar: bool = False,
    regularization_weights: Mapping[str, float] | None = None,
    additional_log_keys: Sequence[str] | None = None,
    discriminator_config: Mapping[str, Any] | None = None,
) -> AutoencoderLoss:
    """The arguments of generative-models' loss as one of ours; its `additional_log_keys` add nothing here."""
    weights = dict(regularization_weights or {})
    kl_weight = weights.pop("kl_loss", 0.0)
    if scale_input_to_tgt_size or dims != 2 or discriminator_config or weights:
        raise ConfigError(
            "loss_config: expected scale_input_to_tgt_size false, dims 2, no discriminator_config and kl_loss alone in "
            "regularization_weights, got others: remove them"
        )
    judge = (disc_weight, disc_start, disc_loss, disc_factor, 64, disc_num_layers, "batch", disc_in_channels)
    terms = _perceptual_terms(1.0, perceptual_weight)
    return AutoencoderLoss(terms, kl_weight, "sum", logvar_init, learn_logvar, *judge)


def _perceptual_terms(pixels: float, perceptual: float) -> dict[str, float]:
    """The absolute error and LPIPS; where that cannot be had, what stands in for it."""
    terms = {"l1": pixels}
    if perceptual:
        try:
            load_lpips()
            terms["lpips"] = perceptual
        except ConfigError as error:
            logger.warning("%s; these two stand in for it", error)
            terms |= {"gradient": perceptual, "structure": 0.5 * perceptual}
    return terms


LOSSES: dict[str, Callable[..., Any]] = {
    "AutoencoderLoss": AutoencoderLoss,
    "LPIPSWithDiscriminator": lpips_with_discriminator,
    "GeneralLPIPSWithDiscriminator": general_lpips_with_discriminator,
    "default_loss": DefaultLoss,
}
"""What a `lossconfig` may name, alone or behind the path of one of these code bases."""

_CODE_BASES = ("exact_vae", "ldm", "sgm", "taming", "VAE", "AutoEncoder")
"""Nothing is imported from these: the last part of their paths is looked up above."""

LossConfig = Mapping[str, Any] | str | Callable[..., Any] | nn.Module | None
"""A {"target", "params"}, a name or dotted path, or the loss itself: a function, a module, an object of ours."""


def make_loss(config: LossConfig) -> Any:
    """The loss of a configuration; None is AutoencoderLoss with its own defaults.

    A dotted path that is none of ours is imported, and so run: it comes from the user's own configuration.

    Raises: ConfigError for an unknown name or argument, and for a loss that cannot be called as `given_loss` says.
    """
    if isinstance(config, str):
        config = {"target": config}
    if config is not None and not isinstance(config, Mapping):
        if not callable(config) and not hasattr(config, "autoencoder"):  # pyright: ignore[reportUnnecessaryComparison]
            raise ConfigError(f"lossconfig: expected target and params, a name or a function, got {config!r}: give one")
        as_loss(config)
        return config
    config = config or {}
    extra = sorted(set(config) - {"target", "params"})
    if extra:
        meant = misspelt(extra, ("target", "params"))
        way = f"say {meant[0][1]}" if meant else "put it under params"
        raise ConfigError(f"lossconfig: expected target and params, got {', '.join(extra)}: {way}")
    target = str(config.get("target", "AutoencoderLoss"))
    params: Any = config.get("params") or {}
    if not isinstance(params, Mapping):
        raise ConfigError(f"lossconfig.params: expected keys with values, got {params!r}: correct it")
    params = cast("Mapping[str, Any]", params)
    name = target.rpartition(".")[2]
    if is_own(target):
        return _given(target, params)
    if name in LOSSES and "." in target and target.split(".")[0] not in _CODE_BASES:
        logger.warning("lossconfig.target: %s cannot be imported; the project's own %s is taken", target, name)
    require(one_of("lossconfig.target", name, LOSSES))
    return call_checked(LOSSES[name], params, "lossconfig.params")


def is_own(target: str) -> bool:
    """Whether a target names a loss of one's own; names alone and the paths of other trainers are looked up here."""
    root, _, name = target.rpartition(".")
    package = root.split(".")[0]
    if not root or package in _CODE_BASES:
        return False
    return name not in LOSSES or package in sys.modules or importlib.util.find_spec(package) is not None


def get_object(path: str, where: str) -> Any:
    """What `path` = "package.module.name" names; ConfigError, in one line, where there is none."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # an import runs code that is not ours
        raise ConfigError(
            f"{where}: expected the path of a class or function, got {path!r}: "
            f"write module.name, with module.py beside the configuration or in the current folder ({first_line(error)})"
        ) from error


def _given(target: str, params: Mapping[str, Any]) -> Any:
    """A loss of one's own by its path: an object of a class, a function with these arguments, or an object as it is."""
    found: Any = get_object(target, "lossconfig.target")
    if inspect.isclass(found) or params:
        try:
            found = found(**params) if inspect.isclass(found) else functools.partial(found, **params)
        except Exception as error:  # a constructor of somebody else's
            raise ConfigError(
                f"lossconfig.params: expected arguments of {target}, got {', '.join(params) or 'none'}: "
                f"correct them ({first_line(error)})"
            ) from error
    as_loss(found)
    return found
