"""A meter for live tensor memory that needs no allocator statistics: it works on the CPU and with fake tensors.

It watches every operation PyTorch dispatches, notes the storage behind each result, and asks the storages
themselves whether they still live. So it sees what the program holds, not what an allocator keeps in reserve.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

# torch.tensor([...]) hands its new storage through this operation, whose result would else look like an old one.
_FRESH = torch.ops.aten.lift_fresh.default


class LiveTensorMeter(TorchDispatchMode):
    """Counts the bytes of the tensor storages made inside the `with` block on one kind of device.

    A storage counts once however many views it has, from the operation that made it until its last tensor is gone.
    Storages that are older than the block never count. With fake tensors, enter FakeTensorMode first and the meter
    inside it; storages then count the bytes they would have.
    Not seen: memory a kernel allocates and frees within one operation, other threads, sparse tensors,
    `UntypedStorage.resize_`, and arrays that numpy owns.
    """

    def __init__(self, device_type: str = "cpu") -> None:
        """`device_type`: "cpu", "cuda", ...; tensors on other kinds of devices do not count."""
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self._device_type = device_type
        # By address. A weak reference keeps the address from being given to another storage while it is here.
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._at_most = 0
        """What lives, and what died since it was last counted: looking for the dead after every operation is slow."""
        self._peak_bytes = 0

    @property
    def current_bytes(self) -> int:
        """Bytes of the counted storages that live now; also after the block."""
        for address in [address for address, (reference, _) in self._live.items() if reference.expired()]:
            del self._live[address]
        self._at_most = sum(size for _, size in self._live.values())
        return self._at_most

    @property
    def peak_bytes(self) -> int:
        """The largest `current_bytes` there has been, with the inputs and results of each operation alive."""
        return self._peak_bytes

    def reset_peak(self) -> None:
        """Start a new peak from what lives now."""
        self._peak_bytes = self.current_bytes

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch would import its compiler and ask it before every operation whether to look away from this one."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._note(func, (args, kwargs), result)
        return result

    def _note(self, func: Any, arguments: Any, result: Any) -> int:
        """Count the results of an operation; the bytes of the storages that it made, 0 where it made none."""
        made, older = 0, None
        for tensor in self._tensors(result):
            storage = _storage(tensor)
            if storage is None:
                continue
            address, size = _address(storage), int(storage.nbytes())
            if address in self._live:
                reference, known = self._live[address]
                if size != known:  # An operation may have resized it.
                    self._live[address] = (reference, size)
                    self._at_most += size - known
                continue
            if older is None:
                older = set() if func is _FRESH else self._addresses(arguments)
            if address not in older:  # Else it was there before the operation and is not one of ours.
                self._live[address] = (StorageWeakRef(storage), size)
                self._at_most += size
                made += size or 1
        if self._at_most > self._peak_bytes:
            self._peak_bytes = max(self._peak_bytes, self.current_bytes)
        return made

    def _addresses(self, tree: Any) -> set[int]:
        return {_address(storage) for storage in map(_storage, self._tensors(tree)) if storage is not None}

    def _tensors(self, tree: Any) -> list[torch.Tensor]:
        """Those in what an operation takes or gives: tensors, tuples, lists and dictionaries of them, other values."""
        if isinstance(tree, torch.Tensor):
            return [tree] if tree.device.type == self._device_type else []
        if isinstance(tree, dict):
            tree = tuple(tree.values())
        return [leaf for part in tree for leaf in self._tensors(part)] if isinstance(tree, tuple | list) else []


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """The storage of a dense tensor; None for layouts that have none of their own."""
    return tensor.untyped_storage() if tensor.layout == torch.strided else None


def _address(storage: Any) -> int:
    """Where the storage's record is in memory: the same number for every Python object that stands for it."""
    return int(storage._cdata)
