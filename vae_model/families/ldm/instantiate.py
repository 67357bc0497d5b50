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
from typing import Any

import torch
from torch import nn, optim

from ...errors.listed import choices
from ..arguments import require_spelling

logger = logging.getLogger(__name__)

_PLACEHOLDERS = ("__is_first_stage__", "__is_unconditional__")
_TORCH_KINDS = (nn.Module, optim.Optimizer, optim.lr_scheduler.LRScheduler)

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    f"torch.optim.{name}": kind
    for name, kind in sorted(vars(optim).items())
    if isinstance(kind, type) and issubclass(kind, optim.Optimizer) and kind is not optim.Optimizer
}
"""What an optimiser's configuration may name. Whoever wants another one adds it here under a name of their own."""


def get_obj_from_str(string: str) -> Any:
    """What a dotted name means here: torch's own layers, optimisers and schedules by their path, else one of this
    package's public names or of `autoencoder.OTHER_NAMES` by the last part, whatever package it is said to be in.

    Nothing is imported that the name tells. ValueError for any other name.
    """
    name = string.rsplit(".", 1)[-1]
    if string.startswith("torch."):
        kind = reduce(lambda owner, part: getattr(owner, part, None), string.split(".")[1:], torch)
        if isinstance(kind, type) and issubclass(kind, _TORCH_KINDS):
            return kind
        raise ValueError(f"configuration: expected a class of torch.nn or torch.optim, got {string!r}: correct it")
    package = import_module("...", __package__)
    others: Mapping[str, Any] = import_module(".autoencoder", __package__).OTHER_NAMES  # it stands above this file
    if name in others:
        return others[name]
    if name in package.HOMES:
        return getattr(package, name)
    known = choices(sorted({*others, *package.HOMES}), name)
    raise ValueError(
        f"configuration: expected a target among {known}, or torch's own, got {string!r}: use one of these names"
    )


def instantiate_from_config(config: Any, classes: Mapping[str, Callable[..., Any]] | None = None) -> Any:
    """What `config` names, called with its "params".

    Args:    config: {"target": a name of `get_obj_from_str`, "params": {...}}.
             classes: what may be named instead, by the last part of the target.
    Returns: the object; None for the two placeholder strings of ldm.
    Raises:  KeyError without a "target", ValueError for an unknown name.
    """
    if isinstance(config, str) and config in _PLACEHOLDERS:
        return None
    if not isinstance(config, Mapping) or "target" not in config:
        sections: Mapping[Any, Any] = config if isinstance(config, Mapping) else {}
        inside = [name for name, section in sections.items() if isinstance(section, Mapping) and "target" in section]
        way = f"pass config[{inside[0]!r}], which has one" if inside else "add it"
        raise KeyError(f"configuration: expected a mapping with the key `target`: {way}")
    require_spelling("configuration", config.keys() - {"target", "params"}, ["params"])
    target = str(config["target"])
    name = target.rsplit(".", 1)[-1]
    if classes is not None and name not in classes:
        known = choices(sorted(classes), name)
        raise ValueError(f"configuration: expected a target among {known}, got {target!r}: use one of these names")
    make = get_obj_from_str(target) if classes is None else classes[name]
    params = config.get("params") or {}
    try:
        signature(make).bind(**params)
    except TypeError as error:
        raise TypeError(f"configuration: {target}: {error}: correct its params") from error
    return make(**params)


def instantiate_optimizer(params: Iterable[Any], lr: float, config: Mapping[str, Any]) -> optim.Optimizer:
    """The optimiser of `params` that `config` names, called with lr and the configured "params".

    KeyError without a "target", ValueError for one that is not in OPTIMIZERS.
    """
    if "target" not in config:
        raise KeyError("optimizer configuration: expected a mapping with the key `target`: add it")
    target = str(config["target"])
    if target not in OPTIMIZERS:
        raise ValueError(
            f"optimizer configuration: expected a target among {choices(OPTIMIZERS, target)}, got {target!r}: "
            "use one of these, or add yours to OPTIMIZERS"
        )
    logger.info("optimiser: %s", target)
    return OPTIMIZERS[target](params, lr=lr, **(config.get("params") or {}))
