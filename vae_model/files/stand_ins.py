"""Checkpoints that also hold what a training kept beside the weights: read with stand-ins in the place of it.

Trainings of 2022 saved Lightning's callbacks, numpy's numbers, argparse's options, paths and omegaconf's settings into
the same pickle. None of these is imported or made: each becomes a dictionary that takes everything and does nothing.
A file that names anything else than what is listed here is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_CLASS = "[A-Z]\\w*"
_STRUCTURES = "dict|list|set|frozenset|tuple|int|long|float|complex|bool|str|unicode|bytes|object|slice|x?range"
_BESIDE: tuple[tuple[str, str], ...] = (
    (r"(pytorch_lightning|lightning|lightning_fabric|lightning_utilities|torchmetrics)(\.\w+)*", _CLASS),
    (r"omegaconf(\.\w+)*", _CLASS),
    (r"torch\.(optim|torch_version)(\.\w+)*", _CLASS),
    (r"argparse", "Namespace"),
    (r"types", "SimpleNamespace"),
    (r"pathlib(\._local)?", "(Pure)?(Posix|Windows)?Path"),
    (r"typing", "Any"),
    (r"datetime", "date|datetime|timedelta|timezone"),
    (r"collections", "defaultdict|deque|Counter"),
    (r"(easydict|addict(\.addict)?|yacs\.config|ml_collections(\.\w+)*)", _CLASS),
    (r"numpy", "dtype|ndarray"),
    (r"numpy\.dtypes", _CLASS),
    (r"numpy\._?core\.multiarray", "scalar|_reconstruct"),
    (r"numpy\._?core\.numeric", "_frombuffer"),
    (r"numpy\.random\._pickle", "__(randomstate|generator|bit_generator)_ctor"),
    (r"numpy\.random\.(_\w+|mtrand)", _CLASS),
    (r"numpy\.random\.bit_generator", "SeedSequence|__pyx_unpickle_SeedSequence"),
    (r"builtins|__builtin__", _STRUCTURES),
    (r"copyreg|copy_reg", "_reconstructor"),
)
"""(module, name) of what may lie beside weights, as regular expressions: containers, settings, states of a training."""
_OF_TORCH: tuple[tuple[str, str], ...] = (
    (r"torch|torch\.storage", r"\w+Storage"),
    (r"torch", r"Tensor|Size|device|[a-z]+\d+\w*|bool|half|float|double|long|int|short|strided"),
    (r"torch\._utils", "_rebuild_(tensor(_v2|_v3)?|parameter(_with_state)?|sparse_tensor|meta_tensor_no_storage)"),
    (r"torch\._tensor", "_rebuild_from_type_v2"),
    (r"torch\.serialization", "_get_layout"),
    (r"torch\.nn\.parameter", "Parameter|Buffer"),
    (r"collections", "OrderedDict"),
    (r"_codecs", "encode"),
    (r"builtins|__builtin__", "bytearray"),
)
"""What a pickle of weights itself names."""
Name = tuple[str, str]
"""A module, and what it is asked for."""


def beside_weights(names: Iterable[Name]) -> list[str]:
    """What a pickle names beside what weights need, sorted."""
    return _others(names, _OF_TORCH)


def unlisted(names: Iterable[Name]) -> list[str]:
    """The names for which a file is refused, sorted."""
    return _others(names, (*_OF_TORCH, *_BESIDE))


def _others(names: Iterable[Name], rows: tuple[tuple[str, str], ...]) -> list[str]:
    def is_listed(name: Name) -> bool:
        return any(re.fullmatch(module, name[0]) and re.fullmatch(attribute, name[1]) for module, attribute in rows)

    return sorted(".".join(name) for name in names if not is_listed(name))


class StandIn(dict[Any, Any]):
    """In the place of any object or function: takes everything, keeps items as a dictionary does, and does nothing."""

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__()

    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...
