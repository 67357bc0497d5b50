"""The arguments that a model was built with: a dictionary that is read by attributes, too, and never written."""

from __future__ import annotations

from typing import Any, NoReturn

from ...errors.listed import choices


class FrozenConfig(dict[str, Any]):
    """`config["act_fn"]` and `config.act_fn`. Writing would change no network, so it is a TypeError.

    `dict(config)` is a copy that can be changed and given to `from_config`.
    """

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(
            f"configuration: expected one of {choices(self, name)}, got {name!r}: use one of these names"
        )

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self]

    def __reduce__(self) -> tuple[type[FrozenConfig], tuple[dict[str, Any]]]:
        return type(self), (dict(self),)

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            "configuration: expected to be read only, for the network is built: "
            "build another by from_config(config, name=value)"
        )

    __setitem__ = __delitem__ = __setattr__ = __delattr__ = _refuse
    update = pop = popitem = setdefault = clear = __ior__ = _refuse  # pyright: ignore[reportAssignmentType]
