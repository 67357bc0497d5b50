"""The moving average that a training keeps beside its weights, as `ema.LitEma` writes it, and which of both is taken.

A checkpoint or state dict holds both: the weights as they were trained last are taken unless part="ema" asks for the
average, and a warning says so. A training's module in memory is read and saved with its average, as what a training
writes out. A parameter that is not trained has no shadow; it stays what it is.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..families.ldm.engine import AbstractAutoencoder
from ..notes import Warned

PARTS = ("ema", "model_ema")
"""What `part` calls the average."""
TAKEN = "taken are the averaged weights, model_ema"
_SHADOWS = "model_ema."


def passed_over(part: str) -> Warned:
    """The note where `part` is taken and its average is not."""
    return Warned(
        "taken are the weights as trained last, not their moving average, which is there, too: say part='ema' "
        f"(--part ema) for the average, part={part!r} for these"
    )


def averages(names: Mapping[str, str], prefix: str, stored: Mapping[str, str]) -> dict[str, str] | None:
    """Names as `names`, with the shadow in the place of each parameter that has one; None where none has.

    Args:    names: of a model, behind `prefix` -> in the file. stored: all names, without wrapping -> in the file.
    """
    words = prefix.split(".")[:-1]
    parents = [".".join((*words[:count], "")) for count in range(len(words), -1, -1)]
    shadows = {name for name in stored if _SHADOWS in name}
    found: dict[str, str] = {}
    for name, theirs in names.items():
        for parent in parents if shadows else ():
            spelled = (name, prefix[len(parent) :] + name, theirs[len(parent) :])
            keys = [f"{parent}{_SHADOWS}{one.replace('.', '')}" for one in spelled]
            found |= next(({name: stored[key]} for key in keys if key in shadows), {})
            if name in found:
                break
    if not found:
        return None
    return {name: theirs for name, theirs in names.items() if not name.startswith(_SHADOWS)} | found


@contextmanager
def with_average(model: Any) -> Generator[tuple[nn.Module, bool], None, None]:
    """(the model that is to be read or saved, whether its weights are there for this moment alone).

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
