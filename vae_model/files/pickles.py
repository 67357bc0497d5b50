"""Checkpoints in torch's pickle formats, an archive or pickles and numbers one behind the other; and what is said of
those that cannot be read.

Why not torch's restricted unpickler (2.13, `weights_only=True, mmap=True`, also with `map_location="meta"`): it makes
what it is told to while it reads. A `bytearray` of 2 * 10^9 bytes, a `torch.Tensor` of a size of the pickle's choice
and the storages of files from before 1.6 are set aside before anything can be compared. A storage in a mapped archive
that declares more than it has gets the bytes that follow, and on the meta device nothing tells which one it was. Files
with objects beside the weights are refused.

Source of the formats: PyTorch `torch/serialization.py` (BSD), read as facts.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import UntypedStorage

from ..errors import VAEFileError
from ..errors.listed import first_line
from .kinds import WRITTEN_SO
from .stand_ins import Name, beside_weights, unlisted
from .unpickler import Damage, FalseSize, Refused, TooShort, Unpickler

_MAX_UNPACKED_RATIO = 20
"""A weight archive that unpacks to more than this many times its size is no weight archive."""
_ALIGNED = 64
"""Bytes: where torch lets numbers begin in an archive. Others are copied, for not every CPU reads them there."""
_LOCAL_HEADER_BYTES = 30
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""The first two pickles of a file from before torch 1.6."""
_STRUCTURES = {"builtins", "__builtin__", "collections", "copyreg", "copy_reg", "typing", "types"}
"""Packages of structures, which say nothing of what is in them."""


def unpickle(path: Path, head: bytes) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """(the dictionary that a pickle of tensors holds, what there is to say); VAEFileError, one line, for all else."""
    names: set[Name] = set()
    try:
        content = _load_archive(path, names) if head.startswith(b"PK") else _load_legacy(path, names)
    except (MemoryError, VAEFileError):
        raise
    except FalseSize as error:
        remedy = "the file is truncated, download it again" if isinstance(error, TooShort) else WRITTEN_SO
        raise VAEFileError(
            f"{path}: expected as many numbers as it declares, found others ({error}): {remedy}"
        ) from error
    except Exception as error:  # the unpickler meets arbitrary bytes, so any exception type may come out of it
        raise VAEFileError(f"{path}: expected a pickle of tensors, found {_found(error, names)}") from error
    if not isinstance(content, Mapping):
        raise VAEFileError(
            f"{path}: expected a state dict, found {type(content).__name__}: choose a checkpoint of weights"
        )
    packages = {name.partition(".")[0] for name in beside_weights(names)}
    listed = ", ".join(sorted(packages - _STRUCTURES) or sorted(packages))
    notes = (f"left out are objects beside the weights ({listed}); nothing of them was run",) if packages else ()
    return cast(Mapping[str, Any], content), notes


def _found(error: Exception, names: set[Name]) -> str:
    """What there is instead, and what to do."""
    others = unlisted(names)
    if others or isinstance(error, Refused):
        named = f" (it names {', '.join(ascii(name)[1:-1][:60] for name in others[:3])})" if others else ""
        unread = f"objects that are not weights; their code was not run: get the .safetensors version{named}"
        return f"{unread}, or have only the state dict saved"
    part = "a part of the archive is overwritten or missing"
    text = part if isinstance(error, zipfile.BadZipFile) else first_line(error, 160)
    return f"damage ({text}): get the .safetensors version or download it again"


def _load_archive(path: Path, names: set[Name]) -> Any:
    """What the pickle in an archive holds. Numbers that are not compressed stay in the mapped file."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile checks little before it computes with what it reads
        raise VAEFileError(f"{path}: expected a torch archive, found a damaged one: download it again") from error
    with archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        folder = _find_pickle(path, archive.infolist())
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

        return Unpickler(io.BytesIO(archive.read(f"{folder}data.pkl")), take, names).load()


def _find_pickle(path: Path, entries: list[zipfile.ZipInfo]) -> str:
    """The folder of the pickle in an archive; VAEFileError for other archives, Damage where torch would refuse it."""
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
    folder = pickles[0].removesuffix("data.pkl")
    if not folder or any(not name.startswith(folder) or ".." in name.split("/") for name in names):
        raise Damage("not all of its files are in one folder")
    if min(entry.header_offset for entry in entries):
        raise Damage("something stands before its first file")
    if not {f"{folder}version", f"{folder}.data/version"} & names:
        raise Damage("its version is missing")
    return folder


def _data_start(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of an entry begin: behind a header whose length only it tells."""
    file: Any = archive.fp
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    if not header.startswith(b"PK\x03\x04"):
        raise Damage("a file of it is not where it should be")
    lengths = (int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little"))
    return entry.header_offset + _LOCAL_HEADER_BYTES + sum(lengths)


def _load_legacy(path: Path, names: set[Name]) -> Any:
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
