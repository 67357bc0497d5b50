"""Weight files: names and shapes first, tensors on demand. Code inside a pickle is never run.

`.safetensors` is memory-mapped; `.pt .pth .ckpt .bin` go through torch's restricted unpickler (`weights_only=True`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import VAEFileError
from .pickles import first_line, unpickle

PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
_DIFFUSERS_FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
_MAX_WRAPPINGS = 8
"""How many times a checkpoint may hold its weights one level further down, under "state_dict"."""


@dataclass(frozen=True)
class Weights:
    """The tensors of one file (or state dict): names and shapes at hand, contents through `read`."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    read: Callable[[str], Tensor]
    metadata: Mapping[str, str]
    """The file's own header and the diffusers config.json beside it, as text."""


def open_weights(source: str | os.PathLike[str] | Mapping[str, Any]) -> Weights:
    """Open a weight file, a diffusers folder, or wrap a state dict. VAEFileError, one line, for anything unreadable."""
    if isinstance(source, Mapping):
        return _from_mapping("the state dict", source, {})
    path = Path(source)
    if path.is_dir():
        candidates = [path / name for name in _DIFFUSERS_FILES if (path / name).is_file()]
        if not candidates:
            raise VAEFileError(
                f"{path}: expected a diffusers folder with {_DIFFUSERS_FILES[0]}, found none: name the file"
            )
        return open_weights(candidates[0])
    if not path.is_file():
        raise VAEFileError(f"{path}: expected a weight file, found none there: check the path")
    head = _read_head(path)
    metadata = _read_config(path.with_name("config.json"))
    suffix = path.suffix.lower()
    if suffix in SAFETENSORS_SUFFIXES:
        return _open_safetensors(path, metadata)
    if suffix in PICKLE_SUFFIXES:
        return _from_mapping(str(path), unpickle(path, head), metadata)
    known = " ".join((*SAFETENSORS_SUFFIXES, *PICKLE_SUFFIXES))
    raise VAEFileError(
        f"{path}: expected a file ending in one of {known}, got {suffix or 'no ending'}: rename or convert it"
    )


def _read_head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise VAEFileError(f"{path}: expected a readable file, got {reason}: check its permissions") from error
    if not head:
        raise VAEFileError(f"{path}: expected weights, found an empty file: download it again")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise VAEFileError(
            f"{path}: expected weights, found a web page saved under this name: download the file itself"
        )
    if text.startswith(b"version https://git-lfs"):
        raise VAEFileError(
            f"{path}: expected weights, found a Git LFS pointer: fetch the file itself with `git lfs pull`"
        )
    return head


def _read_config(path: Path) -> dict[str, str]:
    """The fields of a diffusers config.json beside the weights that names an autoencoder, else nothing."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(config, dict) or config.keys().isdisjoint(("latent_channels", "z_dim")):
        return {}
    return {str(key): str(value) for key, value in cast(dict[str, object], config).items()}


def _open_safetensors(path: Path, metadata: dict[str, str]) -> Weights:
    try:
        file: Any = safe_open(str(path), framework="pt", device="cpu")
        names = list(file.keys())
        slices = {name: file.get_slice(name) for name in names}
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        dtypes = {name: _SAFETENSORS_DTYPES.get(part.get_dtype(), torch.uint8) for name, part in slices.items()}
    except (SafetensorError, OSError, ValueError, OverflowError) as error:
        raise VAEFileError(f"{path}: {_explain_safetensors(path, error)}") from error
    return Weights(str(path), shapes, dtypes, file.get_tensor, metadata | dict(file.metadata() or {}))


_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
}


def _explain_safetensors(path: Path, error: Exception) -> str:
    """What is wrong with the file, in words: too short for its header, or no safetensors at all."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(header_bytes)) if header_bytes < min(size, 100_000_000) else {}
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
            ends = []
    needed = 8 + header_bytes + max(ends, default=0)
    if ends and needed > size:
        return f"expected {needed} bytes of safetensors, found {size}: the file is truncated, download it again"
    return f"expected safetensors, found something else ({first_line(error)}): download the file again"


def _from_mapping(name: str, content: Mapping[str, Any], metadata: dict[str, str]) -> Weights:
    for _ in range(_MAX_WRAPPINGS):  # not until it ends: a pickle can hold itself
        content = content["state_dict"] if isinstance(content.get("state_dict"), Mapping) else content
    named = [(str(key), value) for key, value in content.items() if isinstance(value, Tensor)]
    tensors = dict(named)
    if not tensors:
        raise VAEFileError(f"{name}: expected named tensors, found none: choose a checkpoint of weights")
    if len(tensors) < len(named):
        raise VAEFileError(f"{name}: expected every name once, found two alike: choose a checkpoint of weights")
    # A pickle may also claim a huge tensor over a few stored bytes, every one of its numbers the same.
    odd = [key for key, t in tensors.items() if t.layout != torch.strided or t.nbytes > t.untyped_storage().nbytes()]
    if odd:
        raise VAEFileError(
            f"{name}: expected dense tensors, found '{on_one_line(odd[0])}' sparse or expanded: "
            "choose a checkpoint of weights"
        )

    def read(key: str) -> Tensor:
        if tensors[key].is_meta:
            raise VAEFileError(
                f"{name}: expected numbers in all tensors, found none in {on_one_line(key)}: choose another checkpoint"
            )
        return tensors[key]

    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    return Weights(name, shapes, {key: t.dtype for key, t in tensors.items()}, read, metadata)


def on_one_line(name: str, most: int = 80) -> str:
    """A key, or another text of a file, as an error may show it, whatever characters are in it."""
    shown = name if name.isprintable() else ascii(name)
    return shown if len(shown) <= most else f"{shown[:most]}..."
