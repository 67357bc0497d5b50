"""The numbers of a checkpoint in torch's formats, by the keys that its pickle refers to them by.

Source of the formats: PyTorch `torch/serialization.py` (BSD), read as facts.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import UntypedStorage

from .pickle_scan import Damage, scan
from .stand_ins import StandInUnpickler

_ALIGNED = 64
"""Bytes: where torch lets numbers begin in an archive. Others are copied, for not every processor reads them there."""
_LOCAL_HEADER_BYTES = 30


def load_archive(path: Path) -> Any:
    """What the pickle in an archive holds, with stand-ins. Numbers that are not compressed stay in the mapped file."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        content = next(name for name in entries if name.endswith("/data.pkl") or name == "data.pkl")
        folder = content.removesuffix("data.pkl")
        if not folder or any(not name.startswith(folder) or ".." in name.split("/") for name in entries):
            raise Damage("not all of its files are in one folder")
        if min(entry.header_offset for entry in entries.values()):
            raise Damage("something stands before its first file")
        if not {f"{folder}version", f"{folder}.data/version"} & entries.keys():
            raise Damage("its version is missing")  # torch refuses it, too
        order = archive.read(f"{folder}byteorder").decode() if f"{folder}byteorder" in entries else sys.byteorder
        if order != sys.byteorder:
            raise Damage(f"its numbers are in {order[:9]} endian order")
        mapped = UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
        taken: dict[str, UntypedStorage] = {}

        def take(key: str, size: int) -> UntypedStorage:
            entry = entries[f"{folder}data/{key}"]
            if key not in taken:
                start = _data_start(archive, entry)
                if entry.compress_type == zipfile.ZIP_STORED and start % _ALIGNED == 0:
                    taken[key] = mapped[start : start + size]  # pyright: ignore[reportArgumentType]
                else:
                    taken[key] = _copied(archive.read(entry))
            return _of_size(taken[key], size)

        return StandInUnpickler(io.BytesIO(archive.read(content)), take).load()


def _data_start(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an entry begin: behind a header whose length only it tells."""
    file: Any = archive.fp
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    if not header.startswith(b"PK\x03\x04"):
        raise Damage("a file of it is not where it should be")
    lengths = (int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little"))
    return entry.header_offset + _LOCAL_HEADER_BYTES + sum(lengths)


def load_legacy(path: Path, declared: Mapping[str, int]) -> Any:
    """The same of a file from before torch 1.6: pickles one behind the other, then the storages, each with its count.

    `declared`: the bytes of every storage, as `pickle_scan` found them.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        scan(file, size, _nothing, 3)
        start = file.tell()
        scan(file, size, _nothing, 1)
        keys = StandInUnpickler(file, _no_storage).load()
        places: dict[str, int] = {}
        place = file.tell()
        for key in keys:
            places[str(key)] = place + 8
            place += 8 + declared[str(key)]
        if place > size:
            raise Damage(f"it ends {place - size} bytes too early")
        taken: dict[str, UntypedStorage] = {}

        def take(key: str, count: int) -> UntypedStorage:
            if key not in taken:
                here = file.tell()
                file.seek(places[key])
                taken[key] = _copied(file.read(declared[key]))
                file.seek(here)
            return _of_size(taken[key], count)

        file.seek(start)
        return StandInUnpickler(file, take).load()


def _copied(content: bytes) -> UntypedStorage:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage() if content else UntypedStorage(0)


def _of_size(storage: UntypedStorage, size: int) -> UntypedStorage:
    if storage.nbytes() != size:
        raise Damage(f"{size} bytes are declared, there are {storage.nbytes()}")
    return storage


def _nothing(key: str, size: int) -> None: ...


def _no_storage(key: str, size: int) -> UntypedStorage:
    raise Damage("it refers to a storage from outside")
