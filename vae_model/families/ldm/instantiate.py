"""Building layers and optimisers from {"target": name, "params": {...}} without importing what a configuration names.

Old YAML files carry dotted targets of other code bases (sgm, ldm, ldm_patched, comfy). Only the class name counts, and
only the names of the table passed in, by default this package's own and torch's layers, can be built: a configuration
is data and cannot make anything else run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from importlib import import_module
from inspect import signature
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn, optim

from ...errors import InputError
from ...errors.listed import alike, argument_names, choices, first_line, misspelt, nearest
from ..arguments import CALLS, require_kinds, require_spelling

logger = logging.getLogger(__name__)

_PLACEHOLDERS = ("__is_first_stage__", "__is_unconditional__")
_DIFFUSION = ("LatentDiffusion", "LatentUpscaleDiffusion", "DiffusionEngine", "DDPM")
"""Classes that hold an autoencoder as `first_stage_config`."""
_TORCH_KINDS = (nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler)

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    f"torch.optim.{name}": kind
    for name, kind in sorted(vars(optim).items())
    if isinstance(kind, type) and issubclass(kind, optim.Optimizer) and kind is not optim.Optimizer
}
"""What an optimiser's configuration may name. Whoever wants another one adds it here under a name of their own."""


class TargetError(KeyError, InputError):
    """A configuration without a target: a KeyError, as latent-diffusion raises it, that reads as any other error."""

    def __str__(self) -> str:
        return str(self.args[0])


def get_obj_from_str(string: str) -> Any:
    """What a dotted name means here: torch's own layers, optimisers and schedules by their path, else one of this
    package's public names or of `autoencoder.OTHER_NAMES` by the last part, whatever package it is said to be in.

    Nothing is imported that the name tells. ValueError for any other name, InputError for what is no text.
    """
    if not isinstance(string, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InputError(
            f"configuration: expected a class by its name, such as 'Encoder' or 'torch.nn.Linear', "
            f"got {_shown(string)}: write one"
        )
    name = string.rsplit(".", 1)[-1]
    if string.startswith("torch."):
        return _of_torch(string)
    others = _others()
    if name in others:
        return others[name]
    package = import_module("...", __package__)
    if name in package.HOMES:
        return getattr(package, name)
    if ".diffusion." in string or name in _DIFFUSION:
        raise ValueError(
            f"configuration: expected an autoencoder or a part of one, got {string!r}, a diffusion model: "
            "take its params.first_stage_config"
        )
    raise ValueError(
        f"configuration: expected a target among {choices(_known(), name)}, or torch's own, got {string!r}: "
        "use one of these names"
    )


def _of_torch(string: str) -> Any:
    """torch's own class of that path."""
    owner, _, name = string.rpartition(".")
    found = reduce(lambda place, part: getattr(place, part, None), owner.split(".")[1:], torch)
    kind = vars(found).get(name) if isinstance(found, ModuleType) else None
    if _is_torch_kind(kind):
        return kind
    homes = {home.__name__: home for home in (found, nn, optim, optim.lr_scheduler) if isinstance(home, ModuleType)}
    for path, home in homes.items():
        near = alike(name, [each for each, kind in vars(home).items() if _is_torch_kind(kind)], 3, 0.7)
        if near:
            way = f"say {' or '.join(f'{path}.{each}' for each in near)}"
            break
    else:
        way = "correct it"
    raise ValueError(f"configuration: expected a class of torch.nn or torch.optim, got {string!r}: {way}")


def _is_torch_kind(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, _TORCH_KINDS)


def _others() -> Mapping[str, Any]:
    return import_module(".autoencoder", __package__).OTHER_NAMES  # it stands above this file


def _known() -> list[str]:
    return sorted({*_others(), *import_module("...", __package__).HOMES})


def instantiate_from_config(config: Any, classes: Mapping[str, Callable[..., Any]] | None = None) -> Any:
    """What `config` names, called with its "params".

    Args:    config: {"target": a name of `get_obj_from_str`, "params": {...}}.
             classes: what may be named instead, by the last part of the target.
    Returns: the object; None for the two placeholder strings of ldm.
    Raises:  TargetError, a KeyError, without a "target", ValueError for an unknown name, TypeError for wrong params.
    """
    if isinstance(config, str) and config in _PLACEHOLDERS:
        return None
    if not isinstance(config, Mapping) or "target" not in config:
        raise TargetError(_without_target(config))
    require_spelling("configuration", config.keys() - {"target", "params"}, ["params"])
    target: Any = config["target"]
    name = str(target).rsplit(".", 1)[-1]
    if classes is not None and name not in classes:
        known = choices(sorted(classes), name)
        raise ValueError(f"configuration: expected a target among {known}, got {target!r}: use one of these names")
    params: Any = config.get("params")
    inner = None if name in _known() else _built_inside(params)
    if inner is not None:
        raise ValueError(
            f"configuration: expected an autoencoder or a part of one, got {target!r}: pass params.{inner}, which is "
            f"one, as config['params'][{inner!r}]"
        )
    make = get_obj_from_str(target) if classes is None else classes[name]
    params = {} if params is None else params
    if not isinstance(params, Mapping):
        raise TypeError(
            f"configuration: {target}: expected params as names with values, got {_shown(params)}: "
            "write the name of each argument"
        )
    _check_params(target, make, cast("Mapping[str, Any]", params))
    return make(**params)


def _without_target(config: Any) -> str:
    wanted = "configuration: expected a mapping with the key `target`"
    if not isinstance(config, Mapping):
        return f"{wanted}, got {_shown(config)}: pass {{'target': a class by its name, 'params': {{...}}}}"
    sections = cast("Mapping[Any, Any]", config)
    inside = [name for name, section in sections.items() if isinstance(section, Mapping) and "target" in section]
    near = nearest("target", map(str, sections))
    way = f"pass config[{inside[0]!r}], which has one" if inside else "add it"
    if near and not inside:
        way = f"call {near} so"
    return f"{wanted}, got {', '.join(map(str, sections)) or 'an empty one'}: {way}"


def _built_inside(params: Any) -> str | None:
    """The name of a part of another project's model that can be built here, such as its first stage."""
    if not isinstance(params, Mapping):
        return None
    for name, part in cast("Mapping[str, Any]", params).items():
        target: Any = cast("Mapping[str, Any]", part).get("target") if isinstance(part, Mapping) else None
        if isinstance(target, str) and target.rpartition(".")[2] in _known():
            return name
    return None


def _check_params(target: Any, make: Callable[..., Any], params: Mapping[str, Any]) -> None:
    """TypeError for params that a class or function does not take, with the names that are meant."""
    try:
        if isinstance(make, type):
            signature(make.__init__).bind(None, **params)
        else:
            signature(make).bind(**params)
    except TypeError as error:
        wrong = misspelt(map(str, params), argument_names(make))
        way = "; ".join(f"say {meant} instead of {given}" for given, meant in wrong) or "correct its params"
        raise TypeError(f"configuration: {target}: {error}: {way}") from error


def _shown(value: Any) -> str:
    """What was given, in a few words."""
    text = repr(value)
    return text if len(text) <= 40 else f"a {type(value).__name__}"


def instantiate_optimizer(params: Iterable[Any], lr: float, config: Mapping[str, Any]) -> optim.Optimizer:
    """The optimiser of `params` that `config` names, called with lr and the configured "params".

    KeyError without a "target", ValueError for one that is not in OPTIMIZERS and for arguments that it does not take.
    """
    require_kinds("optimizer configuration", {"lr": lr, "cfg": config}, CALLS)
    if "target" not in config:
        raise TargetError("optimizer configuration: expected a mapping with the key `target`, got none: add it")
    target = str(config["target"])
    if target not in OPTIMIZERS:
        raise ValueError(
            f"optimizer configuration: expected a target among {choices(OPTIMIZERS, target)}, got {target!r}: "
            "use one of these, or add yours to OPTIMIZERS"
        )
    logger.info("optimiser: %s", target)
    given: Any = config.get("params") or {}
    try:
        return OPTIMIZERS[target](params, lr=lr, **given)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        wrong = misspelt(given, argument_names(OPTIMIZERS[target])) if isinstance(given, Mapping) else []  # pyright: ignore
        way = "; ".join(f"say {meant} instead of {name}" for name, meant in wrong) or "correct them"
        raise InputError(
            f"optimizer configuration: expected parameters and arguments that {target} takes, got "
            f"{_shown(given) if given else 'none of its own'}: {way} ({first_line(error)})"
        ) from error
