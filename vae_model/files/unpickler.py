"""Reads a pickle of tensors without importing or calling anything that it names, and without believing its sizes.

torch's restricted unpickler runs no foreign code, but it makes what it is told to, storages and tensors of any size; it
knows no objects beside the weights; and what it takes differs between its versions. Here nothing takes more bytes than
the file has, no tensor reaches over its storage, and everything that is not listed in `_CALLS` is a stand-in.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor, UntypedStorage

from .stand_ins import Name, StandIn, unlisted

Take = Callable[[str, int, torch.dtype], UntypedStorage]
"""A storage by its key, of so many bytes, which hold numbers of that type; raises FalseSize."""
_LONGEST_LINE = 1000
"""Only names of modules and classes, and numbers, are written as lines."""


class FalseSize(ValueError):
    """A pickle declares other numbers than there are."""


class TooShort(FalseSize):
    """It declares more than the whole file holds: mostly, the file was cut off."""


class Damage(ValueError):
    """No pickle, or one that ends too early."""


class Refused(pickle.UnpicklingError):
    """A pickle tells to make or to do what no weights need."""


class _Bounded:
    """A file that is never asked for more than it has: Python sets aside what is asked for before it reads."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, here = file, file.tell()
        self.size = file.seek(0, 2)
        file.seek(here)

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self.size - self.file.tell():
            raise Damage("it is no pickle, or half of one")
        return self.file.read(count)

    def readline(self) -> bytes:
        line = self.file.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise Damage("it is no pickle, or half of one")
        return line


_KINDS = {
    "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16, "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64, "ByteStorage": torch.uint8, "CharStorage": torch.int8, "ShortStorage": torch.int16,
    "IntStorage": torch.int32, "LongStorage": torch.int64, "BoolStorage": torch.bool, "UntypedStorage": torch.uint8,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
"""The names of storages, and the numbers in them."""


class _Numbers:
    """A storage, and the type of its numbers."""

    def __init__(self, storage: UntypedStorage, dtype: torch.dtype) -> None:
        self.storage, self.dtype = storage, dtype


def _tensor(numbers: Any, offset: int, size: Any, stride: Any, dtype: torch.dtype, grad: Any, facts: Any) -> Tensor:
    """A tensor over a storage, within its bounds. `grad` is a flag, `facts` a dictionary or none, as for torch."""
    if not isinstance(grad, bool) or not isinstance(facts, dict | None) or not isinstance(numbers, _Numbers):
        raise Refused("Unsupported tensor")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    room = numbers.storage.nbytes() // dtype.itemsize
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= room):
        raise FalseSize(f"number {last}, room for {room}")
    return torch.empty(0, dtype=dtype).set_(numbers.storage, offset, tuple(size), tuple(stride))  # pyright: ignore


def _rebuild(
    numbers: Any, offset: int, size: Any, stride: Any, grad: Any = False, hooks: Any = None, facts: Any = None
) -> Tensor:
    return _tensor(numbers, offset, size, stride, getattr(numbers, "dtype", torch.uint8), grad, facts)


def _rebuild_v3(
    numbers: Any, offset: int, size: Any, stride: Any, grad: Any, hooks: Any, dtype: torch.dtype, facts: Any = None
) -> Tensor:
    return _tensor(numbers, offset, size, stride, dtype, grad, facts)


def _rebuild_parameter(data: Any, grad: Any, hooks: Any, state: Any = None) -> Tensor:
    if not isinstance(grad, bool) or not isinstance(data, Tensor):
        raise Refused("Unsupported parameter")
    return data


def _rebuild_sparse(layout: Any, data: tuple[Any, ...]) -> Tensor:
    """Without its numbers: nothing here takes sparse tensors, so that its shape is enough to name it."""
    size = next(part for part in reversed(data) if isinstance(part, tuple))
    nowhere = torch.empty(len(size), 0, dtype=torch.int64)
    return torch.sparse_coo_tensor(nowhere, torch.empty(0), size, check_invariants=True)


def _rebuild_meta(dtype: torch.dtype, size: Any, stride: Any, *rest: Any) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="meta")


def _rebuild_from_type(function: Any, kind: Any, values: tuple[Any, ...], state: Any) -> Any:
    """A tensor with attributes, which are left out."""
    _require_callable(function)
    return function(*values)


_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch._utils._rebuild_sparse_tensor": _rebuild_sparse,
    "torch._utils._rebuild_meta_tensor_no_storage": _rebuild_meta,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": tuple,
    "collections.OrderedDict": OrderedDict,
}
"""All that is ever called, beside stand-ins: names in pickles, and what does their work here."""
_TYPES = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")
"""What a tensor with attributes is told to be; nothing is made of them alone."""


def _require_callable(function: Any) -> None:
    if not (isinstance(function, type) and issubclass(function, StandIn)) and function not in _CALLS.values():
        raise Refused("Unsupported call")


def _require(target: Any, *kinds: type) -> None:
    """What an operation changes must be of these kinds."""
    if not isinstance(target, kinds):
        raise Refused("Unsupported target")


def _refuse(reader: Any) -> None:
    raise Refused("Unsupported operation")


_LOOKS: dict[str, Callable[[Any], None]] = {
    "REDUCE": lambda reader: _require_callable(reader.stack[-2]),
    "NEWOBJ": lambda reader: _require_callable(reader.stack[-2]),
    "SETITEM": lambda reader: _require(reader.stack[-3], dict),
    "SETITEMS": lambda reader: _require(reader.metastack[-1][-1], dict),
    "APPEND": lambda reader: _require(reader.stack[-2], StandIn, list),
    "APPENDS": lambda reader: _require(reader.metastack[-1][-1], StandIn, list),
    "ADDITEMS": lambda reader: _require(reader.metastack[-1][-1], StandIn, set),
    # What torch does not write, and the one operation that sets memory aside before it reads.
    **dict.fromkeys(("NEWOBJ_EX", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "BYTEARRAY8"), _refuse),
}
"""What is looked at before an operation: what it calls, or what it changes."""
_PythonUnpickler: Any = pickle._Unpickler  # pyright: ignore  # the one in C sets aside as much as a pickle tells it to


def _guarded(operation: str, look: Callable[[Any], None]) -> Callable[[Any], None]:
    """An operation of Python's unpickler behind a look."""
    run = _PythonUnpickler.dispatch[getattr(pickle, operation)[0]]

    def load(reader: Any) -> None:
        look(reader)
        run(reader)

    return load


def _forget_state(reader: Any) -> None:
    """BUILD: an object takes its state. Of nothing here it is of use."""
    reader.stack.pop()
    _require(reader.stack[-1], StandIn, OrderedDict)


class Unpickler(_PythonUnpickler):
    """Reads one pickle of a file.

    Args:    names: gets (module, name) of everything that the pickle names, also where reading fails.
    Raises:  FalseSize; Refused; and, as the bytes may be any, whatever else Python raises over them.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        **_PythonUnpickler.dispatch,
        **{getattr(pickle, name)[0]: _guarded(name, look) for name, look in _LOOKS.items()},
        pickle.BUILD[0]: _forget_state,
    }

    def __init__(self, file: BinaryIO, take: Take, names: set[Name]) -> None:
        super().__init__(_Bounded(file), encoding="utf-8")
        self.take, self.names = take, names

    def load(self) -> Any:
        """What the pickle holds."""
        content = super().load()
        for name in unlisted(self.names):
            raise Refused(f"Unsupported GLOBAL {name}")
        return content

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        self.names.add((module, name))
        if path in _CALLS:
            return _CALLS[path]
        if path in _TYPES:
            return path
        if name in _KINDS and module in ("torch", "torch.storage"):
            return _KINDS[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        return type(name, (StandIn,), {"__module__": module})

    def persistent_load(self, pid: Any) -> _Numbers:
        word, dtype, key, _, number, *view = pid
        if word not in ("storage", b"storage") or not isinstance(dtype, torch.dtype) or view not in ([], [None]):
            raise Refused("Unsupported reference")
        size = number * dtype.itemsize
        storage = self.take(str(key), size, dtype)
        if storage.nbytes() != size:
            raise FalseSize(f"{size} bytes in {ascii(str(key))[1:-1][:20]}, there are {storage.nbytes()}")
        return _Numbers(storage, dtype)
