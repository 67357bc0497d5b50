"""What a checkpoint in one of torch's formats holds: an archive, or pickles and numbers one behind the other.

Source of the formats: PyTorch `torch/serialization.py` (BSD), read as facts.
"""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import UntypedStorage

from ..errors import VAEFileError
from .safetensors_header import WRITTEN_SO
from .stand_ins import Name
from .unpickler import Damage, FalseSize, TooShort, Unpickler

_MAX_UNPACKED_RATIO = 20
"""A weight archive that unpacks to more than this many times its size is no weight archive."""
_ALIGNED = 64
"""Bytes: where torch lets numbers begin in an archive. Others are copied, for not every CPU reads them there."""
_LOCAL_HEADER_BYTES = 30
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""The first two pickles of a file from before torch 1.6."""


def load_archive(path: Path, names: set[Name]) -> Any:
    """What the pickle in an archive holds. Numbers that are not compressed stay in the mapped file.

    Args:    names: gets (module, name) of everything that the pickle names.
    Raises:  VAEFileError for archives of other things, and for those that would unpack to far more than they are; as
             `Unpickler`.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile checks little before it computes with what it reads
        raise VAEFileError(f"{path}: expected a torch archive, found a damaged one: download it again") from error
    with archive:
        content = _find_pickle(path, archive.infolist())
        entries = {entry.filename: entry for entry in archive.infolist()}
        folder = content.removesuffix("data.pkl")
        if not folder or any(not name.startswith(folder) or ".." in name.split("/") for name in entries):
            raise Damage("not all of its files are in one folder")
        if min(entry.header_offset for entry in entries.values()):
            raise Damage("something stands before its first file")
        if not {f"{folder}version", f"{folder}.data/version"} & entries.keys():
            raise Damage("its version is missing")  # torch refuses it, too
        order = archive.read(f"{folder}byteorder").decode() if f"{folder}byteorder" in entries else sys.byteorder
        mapped = UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
        taken: dict[str, UntypedStorage] = {}

        def take(key: str, size: int, dtype: torch.dtype) -> UntypedStorage:
            entry = entries.get(f"{folder}data/{key}")
            there = 0 if entry is None else entry.file_size
            if size != there:  # fewer are false, too: numbers of another type, read wrongly
                raise FalseSize(f"{size} bytes in data/{ascii(key)[1:-1][:20]}, there are {there}")
            if entry is None:
                return UntypedStorage(0)
            if key not in taken:
                start = _data_start(archive, entry)
                if order == sys.byteorder and entry.compress_type == zipfile.ZIP_STORED and start % _ALIGNED == 0:
                    taken[key] = mapped[start : start + size]  # pyright: ignore[reportArgumentType]
                else:
                    taken[key] = _copied(archive.read(entry))
                    if order != sys.byteorder:
                        taken[key].byteswap(dtype)
            return taken[key]

        return Unpickler(io.BytesIO(archive.read(content)), take, names).load()


def _find_pickle(path: Path, entries: list[zipfile.ZipInfo]) -> str:
    """The name of the pickle among the entries of an archive; VAEFileError for other archives."""
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > _MAX_UNPACKED_RATIO * path.stat().st_size:
        raise VAEFileError(
            f"{path}: expected at most {_MAX_UNPACKED_RATIO} times its size when unpacked, found {unpacked} "
            "bytes: this is no weight file, do not use it"
        )
    names = {entry.filename for entry in entries}
    if any(name.rpartition("/")[2] == "constants.pkl" for name in names):
        raise VAEFileError(
            f"{path}: expected a pickle of tensors, found a TorchScript program: get the VAE as .safetensors"
        )
    if entries and not any(name.endswith(".pkl") for name in names):
        raise VAEFileError(
            f"{path}: expected weights, found an archive of other files: unpack it and give the weight file"
        )
    pickles = [name for name in names if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(names) < len(entries) or len(pickles) != 1:
        found = f"{len(pickles)} of them" if len(pickles) != 1 else "one of its names twice"
        raise VAEFileError(f"{path}: expected one data.pkl as torch writes it, found {found}: {WRITTEN_SO}")
    return pickles[0]


def _data_start(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an entry begin: behind a header whose length only it tells."""
    file: Any = archive.fp
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    if not header.startswith(b"PK\x03\x04"):
        raise Damage("a file of it is not where it should be")
    lengths = (int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little"))
    return entry.header_offset + _LOCAL_HEADER_BYTES + sum(lengths)


def load_legacy(path: Path, names: set[Name]) -> Any:
    """The same of a file from before torch 1.6: pickles in a row, then the numbers, each behind its count."""
    available = path.stat().st_size
    taken: dict[str, tuple[UntypedStorage, torch.dtype]] = {}

    def take(key: str, size: int, dtype: torch.dtype) -> UntypedStorage:
        if key not in taken:
            declared = size + sum(storage.nbytes() for storage, _ in taken.values())
            if size < 0:
                raise FalseSize(f"{size} bytes")
            if declared > available:
                raise TooShort(f"{declared} bytes, room for {available}")
            taken[key] = (UntypedStorage(size), dtype)
        return taken[key][0]

    with path.open("rb") as file:
        magic, protocol, _ = (Unpickler(file, take, names).load() for _ in range(3))
        if (magic, protocol) != (_MAGIC, _PROTOCOL):
            raise Damage("it does not begin as torch writes it")
        content = Unpickler(file, take, names).load()
        keys = [str(key) for key in Unpickler(file, take, names).load()]
        if sorted(keys) != sorted(taken):
            raise Damage("its list of numbers is another's")
        for key in keys:
            storage, dtype = taken[key]
            size, count = storage.nbytes(), int.from_bytes(file.read(8), "little")
            room: Any = torch.empty(0, dtype=torch.uint8).set_(storage)  # pyright: ignore[reportArgumentType, reportCallIssue]
            if file.readinto(room.numpy()) < size:
                raise TooShort(f"{size} bytes in {ascii(key)[1:-1][:20]}, the file ends before")
            if count * dtype.itemsize != size:
                raise FalseSize(f"{size} bytes in {ascii(key)[1:-1][:20]}, there are {count * dtype.itemsize}")
    return content


def _copied(content: bytes) -> UntypedStorage:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage() if content else UntypedStorage(0)
