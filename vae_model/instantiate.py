"""Building layers from configurations {"target": name, "params": {...}} without importing what a configuration names.

Old YAML files carry dotted targets of other code bases (sgm, ldm, ldm_patched, comfy). Only the class name counts, and
only the names of the table passed in can be built: a configuration is data and cannot make anything else run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

_PLACEHOLDERS = ("__is_first_stage__", "__is_unconditional__")


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
