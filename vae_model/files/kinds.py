"""What a file is by its first bytes, whatever its name ends in; and what is wrong with one that holds no weights, or
with safetensors that cannot be opened: cut off, or a header with a wrong value.

Source of the numbers: the formats' own descriptions (GGUF, HDF5, PNG, JPEG, zip, gzip, 7z, rar, xz). Source of the
format: the description in safetensors' README (Apache-2.0), read as facts: 8 bytes of length, a header in JSON, then
the numbers of all tensors without gaps.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from ..errors import VAEFileError
from ..errors.listed import on_one_line

_SAFETENSORS = (".safetensors", ".sft")
SUFFIXES = (*_SAFETENSORS, ".pt", ".pth", ".ckpt", ".bin")
"""What the names of weight files end in."""
MOST_HEADER_BYTES = 100_000_000
"""The longest header that safetensors itself reads."""
_PYTORCH = "get the VAE as .safetensors"
_TEXT = rb"(?i)[\xef\xbb\xbf \t\r\n]*"
_OTHERS: tuple[tuple[bytes, str, str], ...] = (
    (rb"\Z", "an empty file", "download it again"),
    (_TEXT + rb"<(!doctype|html|\?xml|head)", "a web page saved under this name", "download the file itself"),
    (_TEXT + rb"version https://git-lfs", "a Git LFS pointer", "fetch the file itself with `git lfs pull`"),
    (rb"GGUF", "a GGUF file of quantised weights", _PYTORCH),
    (rb"lmgg", "a GGML file of quantised weights", _PYTORCH),
    (rb"\x89HDF", "an HDF5 file, as Keras writes it", _PYTORCH),
    (rb"\x93NUMPY", "an array of numpy", _PYTORCH),
    (rb"\x89PNG|\xff\xd8\xff", "a picture", "give the VAE's weight file"),
    (rb"RIFF", "a picture or a sound", "give the VAE's weight file"),
    (rb"7z\xbc\xaf|Rar!|\x1f\x8b|\xfd7zXZ", "a packed archive", "unpack it and give the weight file in it"),
)
"""(first bytes as a regular expression, what such a file is, what to do)."""
_OTHER_SUFFIXES = {
    ".gguf": ("a GGUF file of quantised weights", _PYTORCH),
    ".onnx": ("an ONNX program", _PYTORCH),
    ".msgpack": ("weights of Flax", _PYTORCH),
    ".h5": ("weights of Keras", _PYTORCH),
    ".tflite": ("a TensorFlow program", _PYTORCH),
    ".json": ("a file of settings", "give the weight file beside it, or the folder"),
    ".yaml": ("a file of settings", "give the weight file that belongs to it"),
}
"""The same by endings, for what has no mark of its own."""
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL"), 8),
}
"""Of one number of each kind that every version of safetensors knows; newer versions know more."""
WRITTEN_SO = "get another version of the file, this one was written so"
"""What to do about a file that is whole and wrong: downloading it again brings the same bytes."""
_AGAIN = "the file is truncated, download it again"
_KIND = re.compile("[A-Z][A-Z0-9_]{1,15}")
_FIELDS = {"dtype", "shape", "data_offsets"}
_METADATA = "__metadata__"
_MOST_SIDES = 64


def is_safetensors(path: Path, head: bytes) -> bool:
    """Whether a file that begins so is to be read as safetensors, else as a pickle of torch's; VAEFileError for others.

    The bytes decide, the ending only where they could be either: a renamed file is what it was before.
    """
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < MOST_HEADER_BYTES:
        return True
    if head.startswith(b"PK\x03\x04") or (head.startswith(b"\x80") and head[1:2] <= b"\x05"):
        return False
    suffix = path.suffix.lower()
    found = next(((what, remedy) for mark, what, remedy in _OTHERS if re.match(mark, head)), None)
    what, remedy = found or _OTHER_SUFFIXES.get(suffix, ("", ""))
    if what:
        raise VAEFileError(f"{path}: expected weights, found {what}: {remedy}")
    if suffix not in SUFFIXES:
        raise VAEFileError(f"{path}: expected a weight file ({' '.join(SUFFIXES)}), found no kind of one: {_PYTORCH}")
    return suffix in _SAFETENSORS


def explain(path: Path, reason: str) -> str:
    """What is wrong with safetensors, as "expected ..., found ...: what to do". `reason`: what its reader said."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(9)
        length = int.from_bytes(start[:8], "little")
        if size < 9:
            return f"expected a header and numbers of safetensors, found {size} bytes: {_AGAIN}"
        if start[8:] != b"{" or length > MOST_HEADER_BYTES:
            return f"expected safetensors, found another kind of file ({reason}): get the VAE as .safetensors"
        if 8 + length > size:
            return f"expected at least {8 + length} bytes of safetensors, found {size}: {_AGAIN}"
        text = b"{" + file.read(length - 1)
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.extend(name for name, number in Counter(name for name, _ in pairs).items() if number > 1)
        return dict(pairs)

    try:
        header: dict[str, Any] = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError):
        return "expected a header in JSON, found damage in it: download the file again"
    for wrong in _wrong_values(header, twice):
        return f"{wrong}: {WRITTEN_SO}"
    needed = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if needed > size:
        return f"expected {needed} bytes of safetensors, found {size}: {_AGAIN}"
    if needed < size:
        return f"expected {needed} bytes, as its header tells, found {size}: download it again, or get another version"
    for name, entry in header.items():
        if entry["dtype"] not in BITS:
            found = f"{entry['dtype']} in {_shown(name)}"
            return f"expected numbers that this safetensors knows, found {found}: get the float16 or float32 version"
    return f"expected safetensors, found what its reader refuses ({reason}): {WRITTEN_SO}"


def _wrong_values(header: dict[str, Any], twice: list[str]) -> Iterator[str]:
    """What is wrong in a header, of which only the first counts: each look relies on those before it."""
    told = header.pop(_METADATA, None)
    if not isinstance(told, (dict, type(None))):
        yield f"expected text in {_METADATA}, found {_shown(told)}"
    for name, value in cast("dict[str, Any]", told or {}).items():
        if not isinstance(value, str):
            yield f"expected text in {_shown(f'{_METADATA}.{name}')}, found {_shown(value)}"
    for name, entry in header.items():
        yield from _wrong_entry(_shown(name), entry)
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, next_end = entry["data_offsets"]
        if start != end:
            yield f"expected {_shown(name)} to begin at byte {end}, found {start} in its data_offsets"
        end = next_end
    for name in twice:
        yield f"expected every name once in the header, found {_shown(name)} twice"


def _wrong_entry(name: str, entry: Any) -> Iterator[str]:
    """The same in what it tells of one tensor."""
    if not isinstance(entry, dict) or not {*cast("dict[str, Any]", entry)} >= _FIELDS:
        yield f"expected {', '.join(sorted(_FIELDS))} of {name}, found {_shown(entry)}"
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        yield f"expected a kind of numbers such as F16 as dtype of {name}, found {_shown(kind)}"
    if not _are_counts(shape):
        yield f"expected whole numbers as shape of {name}, found {_shown(shape)}"
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        yield f"expected begin and end as data_offsets of {name}, found {_shown(offsets)}"
    needed, there = math.prod(shape) * BITS.get(kind, 0) // 8, offsets[1] - offsets[0]
    if kind in BITS and needed != there:
        yield f"expected {needed} bytes for {name}, {kind} of shape {_shown(shape)}, found {there} in its data_offsets"


def _are_counts(values: Any) -> bool:
    if not isinstance(values, list) or len(cast("list[Any]", values)) > _MOST_SIDES:
        return False
    return all(type(value) is int and 0 <= value < 2**64 for value in cast("list[Any]", values))


def _shown(value: Any) -> str:
    """A name or value of the header, on one line."""
    return on_one_line(value if isinstance(value, str) else json.dumps(value))
