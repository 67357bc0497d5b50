"""Clips in and out of files: folders of frames and arrays here, video files by `video`.

`CLIP_WRITERS` is the table of the kinds that can be written, by ending. Frames come group by group and are written as
they come; what is written is there whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError
from ..errors.listed import first_line
from .atomic import atomic_path, require_writable
from .images import SUFFIXES, read_image, write_image
from .video import VIDEOS, Video, video_writer

IMAGES_KEY = "images"
"""Of a safetensors file of images or frames."""
ARRAYS = (".npy", ".safetensors")
FOLDERS = tuple(suffix for suffix in SUFFIXES if suffix not in VIDEOS)
"""Endings of pictures that become a folder of frames; the others hold a clip themselves."""
Take = Callable[[Tensor], None]
"""Gets the next frames, (n, H, W, C), 0..1."""


def clip_target(target: Path) -> Path:
    """Where a clip goes whose file would be called so: for a kind of picture the folder of that name."""
    return target.with_suffix("") if target.suffix.lower() in FOLDERS else target


@contextmanager
def _folder(target: Path, shape: tuple[int, ...]) -> Generator[Take, None, None]:
    """NAME.png -> NAME/NAME_00001.png and so on."""
    folder, written = clip_target(target), 0
    require_replaceable(target)
    require_writable(folder.with_name(target.name))
    temporary = folder.with_name(f".tmp-frames-{secrets.token_hex(6)}")

    def take(frames: Tensor) -> None:
        nonlocal written
        for frame in frames:
            written += 1
            write_image(frame, temporary / f"{target.stem}_{written:05d}{target.suffix}")

    try:
        temporary.mkdir()
        yield take
        _require_all(written, shape)
        if folder.exists():
            shutil.rmtree(folder)  # frames alone, as was looked at before
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def _array(target: Path, shape: tuple[int, ...]) -> Generator[Take, None, None]:
    """float32 (F, H, W, C), as .npy or as the tensor `images` of a .safetensors file."""
    require_writable(target)
    written = 0
    with atomic_path(target) as temporary, temporary.open("wb") as file:
        if target.suffix.lower() == ".npy":
            form: Any = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, form)
        else:
            offsets = [0, 4 * int(np.prod(shape))]
            header = json.dumps({IMAGES_KEY: {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}}).encode()
            header += b" " * (-len(header) % 8)
            file.write(len(header).to_bytes(8, "little") + header)

        def take(frames: Tensor) -> None:
            nonlocal written
            written += len(frames)
            values = frames.detach().to("cpu", torch.float32)
            if not bool(torch.isfinite(values).all()):
                raise ValueError("frames: expected finite numbers, got NaN or infinity: decode in float32")
            file.write(values.contiguous().numpy().astype("<f4", copy=False).tobytes())

        yield take
        _require_all(written, shape)


def _require_all(written: int, shape: tuple[int, ...]) -> None:
    if written != shape[0]:
        raise RuntimeError(f"clip: expected {shape[0]} frames, got {written}: nothing is kept")


ClipWriter = Callable[[Path, tuple[int, ...]], AbstractContextManager[Take]]
CLIP_WRITERS: dict[str, ClipWriter] = {
    **dict.fromkeys(FOLDERS, _folder),
    **dict.fromkeys(ARRAYS, _array),
    **dict.fromkeys(VIDEOS, video_writer),
}
"""(file name, (F, H, W, C)) -> what takes the frames, by the ending of the name."""


def clip_writer(target: Path, video: Video | None = None) -> ClipWriter:
    """ValueError, before any work, for a name whose ending is no kind that can be written.

    Args:    video: how video files are written.
    """
    if target.suffix.lower() in VIDEOS:
        return partial(video_writer, video=video)
    found = CLIP_WRITERS.get(target.suffix.lower())
    if found is None:
        known = ", ".join(CLIP_WRITERS)
        raise ValueError(f"clip: expected a file name ending in {known}, got {str(target)!r}: change the ending")
    return found


def require_replaceable(target: Path) -> None:
    """InputError where a folder is in the place of one of frames that holds anything else than such frames."""
    folder = clip_target(target)
    name = re.compile(rf"{re.escape(target.stem)}_\d{{5,}}({'|'.join(map(re.escape, SUFFIXES))})", re.IGNORECASE)
    if folder.is_file():
        raise InputError(f"-o: expected a folder for the frames of a clip, got the file {folder}: give another name")
    other = [entry.name for entry in folder.iterdir() if not name.fullmatch(entry.name)] if folder.is_dir() else []
    if other:
        raise InputError(
            f"-o: expected a folder of frames of an earlier run, or none, found {min(other)} in {folder}: "
            "give another name"
        )


# -- in ----------------------------------------------------------------------------------------------------------------


def read_frames(folder: Path, pictures: list[Path], channels: int = 3) -> tuple[Tensor, list[str]]:
    """A folder's pictures, in the order given, as the frames of one clip: (1, F, H, W, C), and notes.

    InputError for pictures that are not all of one size.
    """
    first, notes = read_image(pictures[0], channels)
    clip = torch.empty((1, len(pictures), *first.shape[1:]))
    for number, path in enumerate(pictures):
        frame, more = (first, []) if number == 0 else read_image(path, channels)
        if frame.shape != first.shape:
            sizes = [f"{one.shape[2]} x {one.shape[1]}" for one in (first, frame)]
            raise InputError(
                f"frames: expected pictures of one size, {sizes[0]} as {pictures[0].name}, got {sizes[1]} of "
                f"{path.name} in {folder}: scale or crop them, or encode without --frames"
            )
        clip[0, number] = frame[0]
        notes += [note for note in more if note not in notes]
    return clip, notes


def is_array(path: Path) -> bool:
    """Whether it is a file of images or frames as numbers; of a safetensors file the header is read."""
    if path.suffix.lower() == ".npy":
        return True
    try:
        with safe_open(path, framework="pt", device="cpu") as file:  # pyright: ignore
            return IMAGES_KEY in file.keys()  # noqa: SIM118  # it is no mapping
    except (SafetensorError, OSError):
        return False


def read_array(path: Path) -> Tensor:
    """Images (B, H, W, C) or clips (B, F, H, W, C) as floats in 0..1; whole numbers of 8 bits are divided by 255."""
    try:
        if path.suffix.lower() == ".npy":
            values = torch.from_numpy(np.load(path, allow_pickle=False))
        else:
            file: Any
            with safe_open(path, framework="pt", device="cpu") as file:
                values = file.get_tensor(IMAGES_KEY).clone()
    except (SafetensorError, OSError, ValueError, TypeError, EOFError) as error:
        raise ValueError(
            f"images: expected an array of numbers, got {path}: save it again ({first_line(error)})"
        ) from error
    return values.float() / 255 if values.dtype == torch.uint8 else values
