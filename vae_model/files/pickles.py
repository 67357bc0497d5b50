"""Checkpoints in torch's pickle formats: looked through first, then read by torch's restricted unpickler.

torch believes the sizes that a pickle declares: it sets memory aside for them in the format before 1.6, and in an
archive that is mapped into memory it takes so many of the bytes that follow, whatever they are. So the sizes are
compared with the file before.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from ..errors import VAEFileError
from .pickle_scan import FalseSize, ForeignObjects, TooShort, scan
from .safetensors_header import WRITTEN_SO
from .stand_ins import beside_weights, unlisted
from .storages import load_archive, load_legacy

_MAX_UNPACKED_RATIO = 20
"""A weight archive that unpacks to more than this many times its size is no weight archive."""
_STRUCTURES = {"builtins", "__builtin__", "collections", "copyreg", "copy_reg", "typing", "types"}
"""Packages of structures, which say nothing of what is in them."""
_REFUSALS = ("weights_only", "Unsupported", "GLOBAL")
"""Words of torch's unpickler where it refuses to make an object."""
_LEGACY_PICKLES = 5
"""Before the numbers of a file older than torch 1.6: magic number, version, machine, the content, keys of storages."""


def unpickle(path: Path, head: bytes) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """(the dictionary that a pickle of tensors holds, what there is to say); VAEFileError, one line, for all else."""
    names: set[tuple[str, str]] = set()
    try:
        scanned = _scan_archive(path) if head.startswith(b"PK") else _scan_legacy(path)
        names, beside = scanned.names, beside_weights(scanned.names)
        content = scanned.load() if beside else _load(path, scanned.mappable)
    except (MemoryError, VAEFileError):
        raise
    except FalseSize as error:
        remedy = "the file is truncated, download it again" if isinstance(error, TooShort) else WRITTEN_SO
        raise VAEFileError(
            f"{path}: expected as many numbers as it declares, found others ({error}): {remedy}"
        ) from error
    except Exception as error:  # the unpickler meets arbitrary bytes, so any exception type may come out of it
        refused = isinstance(error, ForeignObjects) or any(word in str(error) for word in _REFUSALS)
        raise VAEFileError(
            f"{path}: expected a pickle of tensors, found {_refusal(names) if refused else _damage(error)}"
        ) from error
    if not isinstance(content, Mapping):
        raise VAEFileError(
            f"{path}: expected a state dict, found {type(content).__name__}: choose a checkpoint of weights"
        )
    return cast(Mapping[str, Any], content), _notes(beside)


def _load(path: Path, mappable: bool) -> Any:
    """By torch's restricted unpickler; newer versions take a file for what its name ends in, so it gets none then."""
    if path.suffix.lower() != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mappable)
    with path.open("rb") as file:
        return torch.load(file, map_location="cpu", weights_only=True)


def _notes(beside: list[str] | None) -> tuple[str, ...]:
    """What was left out of the pickle."""
    if not beside:
        return ()
    packages = {name.partition(".")[0] for name in beside}
    listed = ", ".join(sorted(packages - _STRUCTURES) or sorted(packages))
    return (f"left out are objects beside the weights ({listed}); nothing of them was run",)


def _refusal(names: set[tuple[str, str]]) -> str:
    others = ", ".join(ascii(name)[1:-1][:60] for name in unlisted(names)[:3])
    return (
        "objects that are not weights; their code was not run: get the .safetensors version"
        f"{f' (it names {others})' if others else ''}, or have only the state dict saved"
    )


def _damage(error: Exception) -> str:
    text = first_line(error)
    text = "a part of the archive is overwritten or missing" if "PytorchStreamReader" in text else text
    return f"damage ({text}): get the .safetensors version or download it again"


def first_line(error: Exception) -> str:
    """The first line of an error's text, not long, and printable whatever bytes it quotes."""
    text = (str(error).splitlines() or [""])[0][:160] or type(error).__name__
    return text if text.isprintable() else ascii(text)


class _Scanned(NamedTuple):
    """A file that has been looked through."""

    mappable: bool
    """Whether nothing in it is compressed, as torch writes it: only then are its bytes the tensors' bytes."""
    names: set[tuple[str, str]]
    """What its pickle names."""
    load: Callable[[], Any]
    """Reads it with stand-ins."""


def _scan_archive(path: Path) -> _Scanned:
    """Refuse archives that would unpack to far more than they are, or hold other than what they declare."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > _MAX_UNPACKED_RATIO * path.stat().st_size:
                raise VAEFileError(
                    f"{path}: expected at most {_MAX_UNPACKED_RATIO} times its size when unpacked, found {unpacked} "
                    "bytes: this is no weight file, do not use it"
                )
            sizes = {entry.filename: entry.file_size for entry in entries}
            pickles = [name for name in sizes if name.endswith("/data.pkl") or name == "data.pkl"]
            if any(name.rpartition("/")[2] == "constants.pkl" for name in sizes):
                raise VAEFileError(
                    f"{path}: expected a pickle of tensors, found a TorchScript program: get the VAE as .safetensors"
                )
            if entries and not any(name.endswith(".pkl") for name in sizes):
                raise VAEFileError(
                    f"{path}: expected weights, found an archive of other files: unpack it and give the weight file"
                )
            if len(sizes) < len(entries) or len(pickles) != 1:
                found = f"{len(pickles)} of them" if len(pickles) != 1 else "one of its names twice"
                raise VAEFileError(f"{path}: expected one data.pkl as torch writes it, found {found}: {WRITTEN_SO}")
            content = archive.read(pickles[0])
    except VAEFileError:
        raise
    except Exception as error:  # as above: zipfile checks little before it computes with what it reads
        raise VAEFileError(f"{path}: expected a torch archive, found a damaged one: download it again") from error
    folder = pickles[0].removesuffix("data.pkl") + "data/"

    def check(key: str, declared: int) -> None:
        if declared != sizes.get(folder + key, 0):  # fewer are false, too: numbers of another type, read wrongly
            raise FalseSize(f"{declared} bytes in data/{ascii(key)[1:-1][:20]}, there are {sizes.get(folder + key, 0)}")

    names = scan(io.BytesIO(content), len(content), check, 1)
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    return _Scanned(stored, names, lambda: load_archive(path))


def _scan_legacy(path: Path) -> _Scanned:
    """Refuse files that declare more numbers than they hold. Such files are never mapped."""
    available = path.stat().st_size
    declared: dict[str, int] = {}

    def check(key: str, size: int) -> None:
        declared[key] = max(size, declared.get(key, 0))
        if size < 0:
            raise FalseSize(f"{size} bytes")
        if sum(declared.values()) > available:
            raise TooShort(f"{sum(declared.values())} bytes, room for {available}")

    with path.open("rb") as file:
        names = scan(file, available, check, _LEGACY_PICKLES)
    return _Scanned(False, names, lambda: load_legacy(path, declared))
