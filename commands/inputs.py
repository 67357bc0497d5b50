"""What `encode` and `decode` are given: folders become their files, and a wrong kind is told by its name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..vae_model.errors import InputError
from ..vae_model.files.clips import is_array, read_array, read_frames
from ..vae_model.files.images import read_image
from ..vae_model.files.latents import TENSOR_KEY, read_latent
from ..vae_model.files.video_read import ANIMATED, READ

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
WEIGHTS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")


def gather_inputs(paths: Sequence[Path], command: str, *, frames: bool = False) -> list[Path]:
    """The files to work on: each named file, and of each folder its pictures or its latents, by name.

    With `frames` a folder is one input, its pictures are the frames of a clip.
    InputError for a folder that holds none. Folders within it are left alone.
    """
    wanted: Callable[[Path], bool] = is_latent if command == "decode" else _is_to_encode
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(file for file in path.iterdir() if file.is_file() and wanted(file))
        if not found:
            what = (
                f"pictures ({', '.join(PICTURES)}) or videos ({', '.join(READ)})"
                if command == "encode"
                else "latents (.safetensors, .latent)"
            )
            raise InputError(f"{command}: expected a folder with {what}, found none in {path}: name another folder")
        files += [path] if frames else found
    return files


def _is_to_encode(file: Path) -> bool:
    return file.suffix.lower() in (*PICTURES, *READ)


def is_video(source: Path, frames: bool) -> bool:
    """Whether it is read as a clip: a video, or where `frames` are asked for a picture that may hold several."""
    return source.is_file() and source.suffix.lower() in (*READ, *(ANIMATED if frames else ()))


def frames_in(folder: Path) -> list[Path]:
    """Its pictures by name; numbers in names count as such, so that frame 10 is behind frame 9."""

    def place(file: Path) -> list[Any]:
        parts = re.split(r"(\d+)", file.name)
        return [int(part) if number % 2 else part for number, part in enumerate(parts)]

    return sorted((file for file in folder.iterdir() if file.suffix.lower() in PICTURES), key=place)


def read_input(source: Path, command: str) -> Any:
    """For decode a latent. For encode (images, notes): of a picture, of a folder of frames, or of an array of images.

    A file of another kind is told as such.
    """
    try:
        if command == "decode":
            return read_latent(source)
        if source.is_dir():
            return read_frames(source, frames_in(source))
        return (read_array(source), []) if is_array(source) else read_image(source)
    except ValueError as error:
        require_kind(source, command, error)
        raise


def require_kind(source: Path, command: str, cause: Exception | None = None) -> None:
    """InputError for a file of a kind that another command, or another option, takes."""
    wrong = ""
    if command == "encode" and is_latent(source):
        wrong = f"encode: expected a picture, got the latent {source}: did you mean decode?"
    elif command == "encode" and source.is_file() and source.suffix.lower() in WEIGHTS:
        wrong = f"encode: expected a picture, got the weight file {source}: give a VAE with --vae {source}"
    elif command == "decode" and _is_picture(source):
        wrong = f"decode: expected a latent, got the picture {source}: did you mean encode?"
    if wrong:
        raise InputError(wrong) from cause


def is_latent(path: Path) -> bool:
    """Whether the file's header names a latent; only the header is read."""
    if path.suffix.lower() not in (".safetensors", ".latent"):
        return False
    try:
        with safe_open(path, framework="pt", device="cpu") as file:  # pyright: ignore
            return TENSOR_KEY in file.keys()  # noqa: SIM118  # it is no mapping
    except (SafetensorError, OSError):
        return False


def clip_frames(path: Path) -> int:
    """Frames of the latents in a file, where they are of clips; 1 of pictures and of what is no latent."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:  # pyright: ignore
            shape: list[int] = file.get_slice(TENSOR_KEY).get_shape()  # pyright: ignore
    except (SafetensorError, OSError):
        return 1
    return shape[2] if len(shape) == 5 else 1


def _is_picture(path: Path) -> bool:
    """By its first bytes: PNG, JPEG, WebP, TIFF in both orders, BMP or GIF."""
    try:
        with path.open("rb") as file:
            return file.read(4).startswith((b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"II*", b"MM\0*", b"BM", b"GIF8"))
    except OSError:
        return False
