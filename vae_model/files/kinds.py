"""What a file is by its first bytes, whatever its name ends in; and what to do with one that holds no weights.

Source of the numbers: the formats' own descriptions (GGUF, HDF5, PNG, JPEG, zip, gzip, 7z, rar, xz).
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import VAEFileError

PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")
SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
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
    if suffix not in (*SAFETENSORS_SUFFIXES, *PICKLE_SUFFIXES):
        known = " ".join((*SAFETENSORS_SUFFIXES, *PICKLE_SUFFIXES))
        raise VAEFileError(f"{path}: expected a weight file ({known}), found no kind of one: {_PYTORCH}")
    return suffix in SAFETENSORS_SUFFIXES
