"""Checkpoints in torch's pickle formats, and what is said of those that cannot be read.

Why not torch's restricted unpickler (2.13, `weights_only=True, mmap=True`, also with `map_location="meta"`): it makes
what it is told to while it reads. A `bytearray` of 2 * 10^9 bytes, a `torch.Tensor` of a size of the pickle's choice
and the storages of files from before 1.6 are set aside before anything can be compared. A storage in a mapped archive
that declares more than it has gets the bytes that follow, and on the meta device nothing tells which one it was. Files
with objects beside the weights are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

from ..errors import VAEFileError
from ..errors.listed import first_line
from .safetensors_header import WRITTEN_SO
from .stand_ins import Name, beside_weights, unlisted
from .storages import load_archive, load_legacy
from .unpickler import FalseSize, Refused, TooShort

_STRUCTURES = {"builtins", "__builtin__", "collections", "copyreg", "copy_reg", "typing", "types"}
"""Packages of structures, which say nothing of what is in them."""


def unpickle(path: Path, head: bytes) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """(the dictionary that a pickle of tensors holds, what there is to say); VAEFileError, one line, for all else."""
    names: set[Name] = set()
    try:
        content = load_archive(path, names) if head.startswith(b"PK") else load_legacy(path, names)
    except (MemoryError, VAEFileError):
        raise
    except FalseSize as error:
        remedy = "the file is truncated, download it again" if isinstance(error, TooShort) else WRITTEN_SO
        raise VAEFileError(
            f"{path}: expected as many numbers as it declares, found others ({error}): {remedy}"
        ) from error
    except Exception as error:  # the unpickler meets arbitrary bytes, so any exception type may come out of it
        found = _refusal(names) if isinstance(error, Refused) or unlisted(names) else _damage(error)
        raise VAEFileError(f"{path}: expected a pickle of tensors, found {found}") from error
    if not isinstance(content, Mapping):
        raise VAEFileError(
            f"{path}: expected a state dict, found {type(content).__name__}: choose a checkpoint of weights"
        )
    return cast(Mapping[str, Any], content), _notes(beside_weights(names))


def _notes(beside: list[str] | None) -> tuple[str, ...]:
    """What was left out of the pickle."""
    if not beside:
        return ()
    packages = {name.partition(".")[0] for name in beside}
    listed = ", ".join(sorted(packages - _STRUCTURES) or sorted(packages))
    return (f"left out are objects beside the weights ({listed}); nothing of them was run",)


def _refusal(names: set[Name]) -> str:
    others = ", ".join(ascii(name)[1:-1][:60] for name in unlisted(names)[:3])
    return (
        "objects that are not weights; their code was not run: get the .safetensors version"
        f"{f' (it names {others})' if others else ''}, or have only the state dict saved"
    )


def _damage(error: Exception) -> str:
    text = (
        "a part of the archive is overwritten or missing" if isinstance(error, BadZipFile) else first_line(error, 160)
    )
    return f"damage ({text}): get the .safetensors version or download it again"
