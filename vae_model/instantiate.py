"""Building layers and optimisers from {"target": name, "params": {...}} without importing what a configuration names.

Old YAML files carry dotted targets of other code bases (sgm, ldm, ldm_patched, comfy). Only the class name counts, and
only the names of the table passed in can be built: a configuration is data and cannot make anything else run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn, optim

_PLACEHOLDERS = ("__is_first_stage__", "__is_unconditional__")

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    f"torch.optim.{name}": kind
    for name, kind in sorted(vars(optim).items())
    if isinstance(kind, type) and issubclass(kind, optim.Optimizer) and kind is not optim.Optimizer
}
"""What an optimiser's configuration may name. Whoever wants another one adds it here under a name of their own."""


def instantiate_from_config(config: Any, classes: Mapping[str, Callable[..., nn.Module]]) -> nn.Module | None:
    """The module that `config` names, from `classes` by the last part of its dotted target.

    None for the two placeholder strings of ldm. KeyError without a "target", ValueError for a name not in `classes`.
    """
    if isinstance(config, str) and config in _PLACEHOLDERS:
        return None
    if not isinstance(config, Mapping) or "target" not in config:
        raise KeyError("configuration: expected a mapping with the key `target`: add it")
    target = str(config["target"])
    name = target.rsplit(".", 1)[-1]
    if name not in classes:
        known = ", ".join(sorted(classes))
        raise ValueError(f"configuration: expected a target among {known}, got {target!r}: use one of these names")
    return classes[name](**(config.get("params") or {}))


def instantiate_optimizer(params: Iterable[Any], lr: float, config: Mapping[str, Any]) -> optim.Optimizer:
    """The optimiser of `params` that `config` names, called with lr and the configured "params".

    KeyError without a "target", ValueError for one that is not in OPTIMIZERS.
    """
    if "target" not in config:
        raise KeyError("optimizer configuration: expected a mapping with the key `target`: add it")
    target = str(config["target"])
    if target not in OPTIMIZERS:
        raise ValueError(
            f"optimizer configuration: expected a target among {', '.join(OPTIMIZERS)}, got {target!r}: "
            "use one of these, or add yours to OPTIMIZERS"
        )
    return OPTIMIZERS[target](params, lr=lr, **(config.get("params") or {}))
