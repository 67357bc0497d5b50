"""What a checkpoint holds beside the tensors: the arguments that build the module again, as plain data."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from ..errors import InputError
from .autoencoder_loss import AutoencoderLoss, DefaultLoss
from .given_loss import name_of

OWN_LOSS = "own_loss"
"""Under this key: the name of a loss of one's own. It is not stored as an argument, since reading a checkpoint must not
import what the checkpoint names."""


def plain(value: Any) -> Any:
    """Mappings as dicts, sequences as lists, paths as text: what a checkpoint can be read with `weights_only`."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (str, bool, int, float, type(None))):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(cast("os.PathLike[str]", value))
    if isinstance(value, Sequence):
        return [plain(item) for item in cast("Sequence[Any]", value)]
    return str(value)


def own_loss(loss: Any) -> str | None:
    """The name of a loss that is none of the project's."""
    return None if isinstance(loss, (AutoencoderLoss, DefaultLoss)) else name_of(loss)


def require_own_loss(loss: Any, stored: str | None) -> None:
    """InputError where a checkpoint was made with another loss of one's own than the module has."""
    if stored is not None and own_loss(loss) != stored:
        raise InputError(
            f"checkpoint: expected the loss that it was trained with, {stored}, got {name_of(loss)}: "
            "give it, as in load_from_checkpoint(path, lossconfig=...)"
        )


def rename_parts(state: dict[str, Any], parts: Iterable[str]) -> None:
    """Give tensors of older checkpoints, `model.encoder...`, the names that they have today, in place."""
    beginnings = tuple(f"model.{part}." for part in parts)
    for name in [name for name in state if name.startswith(beginnings)]:
        state[name.removeprefix("model.")] = state.pop(name)
