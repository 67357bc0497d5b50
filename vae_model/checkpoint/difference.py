"""What two models of the same weights would compute otherwise: layer by layer, by class and by what decides a forward.

For `save`: the model in memory against the one that its file would be read as. Weights are not compared, nor hooks and
replaced forwards, which no file of weights can hold.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from ..families.ldm.autoencoder import SAME_ENGINES

_AROUND = ("loss", "model_ema", "discriminator", "regularization")
"""Children that only training uses, and one that is compared by itself."""
_METHODS = ("forward", "encode", "decode", "_moments")
_OURS = __name__.rpartition(".checkpoint.")[0] + "."
_IN_PLACE = re.compile(r"(, )?inplace=\w+")


def differences(model: nn.Module, read: nn.Module, *, without: tuple[str, ...] = ()) -> list[str]:
    """What of `model` is another thing in `read`, a text for each layer; nothing where both compute the same.

    `without`: children to leave out of the comparison.
    """
    ours, theirs = (_layers(one, without) for one in (model, read))
    found = [
        f"{name or 'the model'} {text}"
        for name in sorted(ours.keys() | theirs.keys())
        for text in _compare(ours.get(name), theirs.get(name))
    ]
    regularizers = [type(getattr(one, "regularization", None)).__name__ for one in (model, read)]
    if hasattr(model, "encoder") and "encoder" not in without and len({*regularizers} - {"NoneType"}) == 2:
        found.append(f"regularization {regularizers[0]} as {regularizers[1]}")
    return found


def _layers(model: nn.Module, without: tuple[str, ...]) -> dict[str, nn.Module]:
    """All layers by name, but those that do nothing."""
    skipped = (*_AROUND, *without)
    return {
        name: layer
        for name, layer in model.named_modules()
        if name.split(".", 1)[0] not in skipped and not isinstance(layer, nn.Identity)
    }


def _compare(one: nn.Module | None, other: nn.Module | None) -> list[str]:
    """Texts "<what it is> as <what it was read as>"."""
    if one is None or other is None or _kind(one) != _kind(other):
        return [f"{_kind(one)} as {_kind(other)}"]
    shown = [_IN_PLACE.sub("", layer.extra_repr()) for layer in (one, other)]
    if shown[0] != shown[1]:
        return [f"({shown[0]}) as ({shown[1]})"]
    usual = ("align_corners",) if isinstance(one, nn.Upsample) else ()
    decides: tuple[str, ...] = getattr(_known(one), "decides", usual)
    pairs = [(name, *(getattr(layer, name, None) for layer in (one, other))) for name in decides]
    return [f"{name} {ours} as {theirs}" for name, ours, theirs in pairs if ours != theirs and hasattr(one, name)]


def _kind(layer: Any) -> str:
    """The class that says what a layer computes. A host's layers are known by the names that they share with ours."""
    if layer is None:
        return "nothing"
    if type(layer) in SAME_ENGINES:
        return "autoencoder"
    own, known = type(layer), _known(layer)
    if known is nn.Module:
        return own.__name__
    changed = next((name for name in _METHODS if getattr(own, name, None) is not getattr(known, name, None)), None)
    if changed is not None and not hasattr(layer, "comfy_cast_weights"):
        return f"{own.__name__} with a {changed} of its own"
    return "autoencoder" if known in SAME_ENGINES else known.__name__


def _known(layer: nn.Module) -> type:
    """The class of ours or of torch's that a layer's class is, or is made from. Those of ours say in `decides` which of
    their attributes decide what they compute and are shown by no layer inside."""
    return next(kind for kind in type(layer).__mro__ if kind.__module__.startswith((_OURS, "torch.")))
