"""Checkpoints that also hold what a training kept beside the weights: read with stand-ins in the place of it.

Trainings of 2022 saved Lightning's callbacks, numpy's numbers, argparse's options, paths and omegaconf's settings into
the same pickle. None of these is imported or made: each becomes a dictionary that takes everything and does nothing.
Only what is listed here gets a stand-in. Any other name ends the reading, as torch's restricted unpickler ends it.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor, UntypedStorage

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
    (r"torch", r"Size|device|[a-z]+\d+\w*|bool|half|float|double|long|int|short|strided"),
    (r"torch\._utils", r"_rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"),
    (r"torch\.nn\.parameter", "Parameter"),
    (r"collections", "OrderedDict"),
    (r"_codecs", "encode"),
)
"""What a pickle of weights itself names."""
Name = tuple[str, str]
"""A module, and what it is asked for."""


def beside_weights(names: Iterable[Name]) -> list[str] | None:
    """The listed things among all names of a pickle, sorted; None where any name is neither these nor of weights."""
    found = {name for name in names if not _is_listed(name, _OF_TORCH)}
    if not all(_is_listed(name, _BESIDE) for name in found):
        return None
    return sorted(".".join(name) for name in found)


def unlisted(names: Iterable[Name]) -> list[str]:
    """The names for which there is no stand-in, sorted."""
    return sorted(".".join(name) for name in names if not _is_listed(name, (*_OF_TORCH, *_BESIDE)))


def _is_listed(name: Name, rows: tuple[tuple[str, str], ...]) -> bool:
    return any(re.fullmatch(module, name[0]) and re.fullmatch(attribute, name[1]) for module, attribute in rows)


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


_KINDS = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
"""The names of storages, and the numbers in them."""


class _Numbers:
    """A storage, and the type of its numbers."""

    def __init__(self, storage: UntypedStorage, dtype: torch.dtype) -> None:
        self.storage, self.dtype = storage, dtype


def _tensor(numbers: Any, offset: int, size: Any, stride: Any, dtype: torch.dtype) -> Tensor:
    """A tensor over a storage, within its bounds."""
    if not isinstance(numbers, _Numbers):
        raise pickle.UnpicklingError("Unsupported tensor")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (0 not in size and (last + 1) * dtype.itemsize > numbers.storage.nbytes()):
        raise pickle.UnpicklingError("Unsupported size")
    return torch.empty(0, dtype=dtype).set_(numbers.storage, offset, tuple(size), tuple(stride))  # pyright: ignore


def _rebuild(numbers: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    _require_flag(rest)
    return _tensor(numbers, offset, size, stride, numbers.dtype)


def _rebuild_v3(numbers: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    _require_flag(rest)
    return _tensor(numbers, offset, size, stride, rest[2])  # behind two facts about gradients


def _rebuild_parameter(data: Any, *rest: Any) -> Any:
    _require_flag(rest)
    return data


def _require_flag(rest: tuple[Any, ...]) -> None:
    """Whether gradients are wanted stands first among what is left over; torch takes nothing else there, either."""
    if rest and not isinstance(rest[0], bool):
        raise pickle.UnpicklingError("Unsupported flag")


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "collections.OrderedDict": OrderedDict,
}
"""All that is ever called, beside stand-ins: names in pickles, and what does their work here."""
_PythonUnpickler: Any = pickle._Unpickler  # pyright: ignore  # the one in C cannot be told what it may call


class StandInUnpickler(_PythonUnpickler):
    """Reads a pickle that `pickle_scan` has looked through; imports nothing, calls `_CALLS` and stand-ins."""

    dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, file: BinaryIO, take: Callable[[str, int], UntypedStorage]) -> None:
        """`take(key, bytes)`: a storage by its key."""
        super().__init__(file, encoding="utf-8")
        self.take = take

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        if path in _CALLS:
            return _CALLS[path]
        if name in _KINDS and module in ("torch", "torch.storage"):
            return _KINDS[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if not _is_listed((module, name), (*_OF_TORCH, *_BESIDE)):
            raise pickle.UnpicklingError(f"Unsupported GLOBAL {path}")
        return type(name, (StandIn,), {"__module__": module})

    def persistent_load(self, pid: Any) -> _Numbers:
        word, dtype, key, _, number, *view = pid
        if word not in ("storage", b"storage") or not isinstance(dtype, torch.dtype) or view not in ([], [None]):
            raise pickle.UnpicklingError("Unsupported reference")
        return _Numbers(self.take(str(key), number * dtype.itemsize), dtype)

    def _require_callable(self, function: Any) -> None:
        if not (isinstance(function, type) and issubclass(function, StandIn)) and function not in _CALLS.values():
            raise pickle.UnpicklingError("Unsupported call")

    def load_reduce(self) -> None:
        """REDUCE: call what lies under the arguments."""
        self._require_callable(self.stack[-2])
        super().load_reduce()

    def load_newobj(self) -> None:
        """NEWOBJ: make an object of a class."""
        self._require_callable(self.stack[-2])
        super().load_newobj()

    def load_build(self) -> None:
        """BUILD: an object takes its state. Of nothing here it is of use."""
        self.stack.pop()
        if not isinstance(self.stack[-1], (StandIn, OrderedDict)):
            raise pickle.UnpicklingError("Unsupported state")

    def _require_target(self, kinds: tuple[type, ...]) -> None:
        target = self.metastack[-1][-1] if self.metastack else None
        if not isinstance(target, (StandIn, *kinds)):
            raise pickle.UnpicklingError("Unsupported target")

    def load_setitems(self) -> None:
        """SETITEMS: into dictionaries only."""
        self._require_target((dict,))
        super().load_setitems()

    def load_appends(self) -> None:
        """APPENDS: to lists only."""
        self._require_target((list,))
        super().load_appends()

    def load_additems(self) -> None:
        """ADDITEMS: to sets only."""
        self._require_target((set,))
        super().load_additems()

    def load_setitem(self) -> None:
        """SETITEM: into dictionaries only."""
        if not isinstance(self.stack[-3], dict):
            raise pickle.UnpicklingError("Unsupported target")
        super().load_setitem()

    def load_append(self) -> None:
        """APPEND: to lists only."""
        if not isinstance(self.stack[-2], (StandIn, list)):
            raise pickle.UnpicklingError("Unsupported target")
        super().load_append()

    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.APPENDS[0]] = load_appends
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.APPEND[0]] = load_append
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.BUILD[0]] = load_build
    for _code in (pickle.NEWOBJ_EX, pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8):
        dispatch.pop(_code[0], None)
