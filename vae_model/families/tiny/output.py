"""What the tiny autoencoder returns: named tuples that are read as diffusers' outputs are, too.

Unlike diffusers' (`BaseOutput`, an ordered dictionary) they unpack and iterate as the tuples they are; their names are
`keys()`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


def _keys(self: Any) -> list[str]:
    """The names, in order."""
    return list(self._fields)


def _values(self: Any) -> list[Tensor]:
    """The tensors, in order."""
    return list(self)


def _items(self: Any) -> list[tuple[str, Tensor]]:
    """Names and tensors."""
    return list(zip(self._fields, self, strict=True))


def _to_tuple(self: Any) -> tuple[Tensor, ...]:
    """The plain tuple, as with return_dict=False."""
    return tuple(self)


def _get(self: Any, name: str, default: Any = None) -> Any:
    """The tensor of that name, else `default`."""
    return getattr(self, name) if name in self._fields else default


def _get_item(self: Any, key: Any) -> Any:
    """By name, number or slice; KeyError for a name that is not there."""
    if not isinstance(key, str):
        return tuple.__getitem__(self, key)
    if key not in self._fields:
        raise KeyError(f"{type(self).__name__}: expected {' or '.join(self._fields)}, got {key!r}: use a name of it")
    return getattr(self, key)


def _contains(self: Any, key: object) -> bool:
    """Whether it is a name or one of the tensors themselves."""
    return key in self._fields if isinstance(key, str) else any(value is key for value in self)


class AutoencoderTinyOutput(NamedTuple):
    """What `encode` returns: latents (B, latent_channels, h, w)."""

    latents: Tensor

    keys, values, items, to_tuple, get = _keys, _values, _items, _to_tuple, _get
    __getitem__, __contains__ = _get_item, _contains  # pyright: ignore


class DecoderOutput(NamedTuple):
    """What `decode` and `forward` return: sample (B, out_channels, H, W), about -1..1."""

    sample: Tensor

    keys, values, items, to_tuple, get = _keys, _values, _items, _to_tuple, _get
    __getitem__, __contains__ = _get_item, _contains  # pyright: ignore
