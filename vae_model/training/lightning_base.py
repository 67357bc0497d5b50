"""A LightningModule for the Trainer of `lightning` and for that of `pytorch_lightning`, whichever it is given to.

The two packages hold the same code twice, and each Trainer takes modules of its own package only. A module is both
here; when it meets the Trainer of `pytorch_lightning`, it changes into a class whose inherited methods are those.
"""

from __future__ import annotations

from functools import cache
from inspect import getattr_static
from typing import TYPE_CHECKING, Any

from lightning import LightningModule

if TYPE_CHECKING:
    _Twin = LightningModule
    _BASES = (LightningModule,)
else:
    from lightning_utilities.core import rank_zero

    messages = rank_zero.log  # of both packages: the one that is imported last would take them over
    try:
        from pytorch_lightning import LightningModule as _Twin
    except ImportError:  # the newer package is enough
        _Twin = LightningModule
    rank_zero.log = messages
    _BASES = (LightningModule,) if _Twin is LightningModule else (LightningModule, _Twin)


class EitherModule(*_BASES):  # pyright: ignore[reportGeneralTypeIssues, reportUntypedBaseClass]
    """What trainings inherit from."""

    @property
    def trainer(self) -> Any:
        """The Trainer that this is attached to; RuntimeError without one."""
        return LightningModule.trainer.__get__(self)

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        kind: Any = type(self)
        if any(base.__module__.startswith("pytorch_lightning.") for base in type(trainer).__mro__):
            self.__class__ = _for_pytorch_lightning(kind)
        elif "_of_pytorch_lightning" in vars(kind):
            self.__class__ = kind.__mro__[1]
        LightningModule.trainer.__set__(self, trainer)  # pyright: ignore


@cache
def _for_pytorch_lightning(kind: type[EitherModule]) -> type[EitherModule]:
    """The same class with the methods of `pytorch_lightning` where `kind` has those of `lightning`."""
    if "_of_pytorch_lightning" in vars(kind):
        return kind
    owners = {name: owner for owner in reversed(kind.__mro__) for name in vars(owner)}
    theirs = {
        name: getattr_static(_Twin, name)
        for name, owner in owners.items()
        if owner.__module__.startswith("lightning.") and hasattr(_Twin, name)
    }
    ours = {"_of_pytorch_lightning": True, "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), theirs | ours)
