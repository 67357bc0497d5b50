"""Looking through a pickle of tensors without making any: do its sizes fit, does anything in it ask for memory?

torch's restricted unpickler runs no foreign code, but it makes what it is told to: storages and tensors of any size.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, BinaryIO, ClassVar

Check = Callable[[str, int], None]
"""Called with the key and the bytes of every storage that a pickle refers to; raises FalseSize."""

_ITEM_BYTES = {
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("DoubleStorage", "LongStorage", "ComplexFloatStorage"), 8),
    "ComplexDoubleStorage": 16,
}
"""Of torch's storage classes; all others hold single bytes."""
_LONGEST_LINE = 1000
"""Only names of modules and classes, and numbers, are written as lines."""
_KNOWN_MODULES = ("torch", "collections", "_codecs")
_REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor")
"""Functions of torch._utils that lay a tensor over a storage: (storage, offset, size, stride, ...)."""


class FalseSize(ValueError):
    """A pickle declares other numbers than there are."""


class TooShort(FalseSize):
    """It declares more than the whole file holds: mostly, the file was cut off."""


class ForeignObjects(ValueError):
    """A pickle tells to make what is no weight, or something of a size of its own choice."""


class Damage(ValueError):
    """No pickle, or one that ends too early."""


def scan(file: BinaryIO, size: int, check: Check, count: int) -> set[tuple[str, str]]:
    """Look through `count` consecutive pickles in a file of `size` bytes.

    Returns: (module, name) of everything that they name.
    Raises:  FalseSize, ForeignObjects, Damage. Without one of them torch may read the file: no operation in it takes
             more bytes than the file has, and no tensor more than its storage.
    """
    names: set[tuple[str, str]] = set()
    try:
        for _ in range(count):
            scanner = _Scanner(_Bounded(file, size), check)
            try:
                scanner.load()
            finally:
                names |= scanner.names
    except (FalseSize, ForeignObjects):
        raise
    except Exception as error:  # the file may be anything, and so may what goes wrong
        foreign = any(module.split(".")[0] not in _KNOWN_MODULES for module, _ in names)
        raise (ForeignObjects() if foreign else Damage("it is no pickle, or half of one")) from error
    return names


class _Bounded:
    """A file that is never asked for more than it has: Python sets aside what is asked for before it reads."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self.size - self.file.tell():
            raise EOFError
        return self.file.read(count)

    def readline(self) -> bytes:
        line = self.file.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise EOFError
        return line


class _Inert:
    """Stands for every object of a pickle; takes everything, does nothing."""

    def __new__(cls, *values: Any, **named: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *values: Any, **named: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...


class _Storage(_Inert):
    """What a pickle refers to by a persistent id."""

    number = 0


class _Rebuilt(_Inert):
    """A tensor over a storage."""

    def __init__(self, *values: Any, **named: Any) -> None:
        storage, offset, size, stride = values[:4]
        if not isinstance(storage, _Storage):
            raise ForeignObjects
        last = int(offset) + sum((int(n) - 1) * int(step) for n, step in zip(size, stride, strict=True))
        negative = min((int(offset), *size, *stride)) < 0
        if negative or (0 not in size and last >= storage.number):
            raise FalseSize(f"number {last}, room for {storage.number}")


class _FromType(_Inert):
    """torch._tensor._rebuild_from_type_v2(function, type, values, state)."""

    def __init__(self, *values: Any, **named: Any) -> None:
        values[0](*values[2])


class _Maker(_Inert):
    """A class whose call with a number sets that much memory aside."""

    def __new__(cls, *values: Any, **named: Any) -> _Inert:
        if named or not all(isinstance(value, (str, bytes)) for value in values):
            raise ForeignObjects
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        _Rebuilt(*state)


_PythonUnpickler: Any = pickle._Unpickler  # pyright: ignore  # the one in C sets aside as much as a pickle tells it to


class _Scanner(_PythonUnpickler):
    """Reads a pickle without importing or calling anything that it names."""

    dispatch: ClassVar[dict[int, Any]] = {
        code: load for code, load in _PythonUnpickler.dispatch.items() if code != pickle.BYTEARRAY8[0]
    }
    """Without the one operation that sets memory aside before reading; torch does not have it, either."""

    def __init__(self, file: _Bounded, check: Check) -> None:
        super().__init__(file)
        self.check = check
        self.names: set[tuple[str, str]] = set()

    def find_class(self, module: str, name: str) -> type[_Inert]:
        kind: type[_Inert] = _Inert
        self.names.add((module, name))
        if name in _REBUILD:
            kind = _Rebuilt
        elif name == "_rebuild_from_type_v2":
            kind = _FromType
        elif name == "bytearray" or name.endswith(("Tensor", "Storage")):
            kind = _Maker
        return type(name, (kind,), {})  # pyright: ignore[reportReturnType]

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, _, number = pid[:5]
        self.check(str(key), int(number) * _ITEM_BYTES.get(kind.__name__, 1))
        storage: Any = _Storage()
        storage.number = int(number)
        return storage
