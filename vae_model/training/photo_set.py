"""The pictures of a training: found in folders and lists, read once or on demand, the unreadable ones left out.

Paths lie in one array of bytes and decoded pictures in tensors, not in lists of Python objects: worker processes share
such memory with their parent, while counting references would copy it to every one of them, picture by picture.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors.listed import some
from ..files.images import SUFFIXES, read_photo
from .config import ConfigError

logger = logging.getLogger(__name__)

ENDINGS = (*SUFFIXES, ".bmp", ".gif")
MOST_ENLARGED = 4
"""Times that the largest picture may be enlarged to a crop: of more there is nothing left to learn from."""


def find_pictures(sources: Sequence[str], where: str) -> list[Path]:
    """The picture files of folders (with all subfolders), of .txt lists and themselves, sorted, each once.

    Raises: ConfigError for a source that does not exist and where there is no picture at all.
    """
    found: set[Path] = set()
    for source in sources:
        path = Path(source).expanduser()
        if path.is_dir():
            files = (Path(folder) / name for folder, _, names in os.walk(path, followlinks=True) for name in names)
            found.update(file for file in files if file.suffix.lower() in ENDINGS)
        elif path.suffix.lower() == ".txt" and path.is_file():
            lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
            found.update(path.parent / line for line in lines if line and not line.startswith("#"))
        elif path.is_file():
            found.add(path)
        else:
            raise ConfigError(
                f"{where}: expected a folder, a picture or a .txt list, got {source}, where nothing is: check the path"
            )
    if not found:
        names, way = ", ".join(sources) or "nothing", "name others" if sources else f"say {where}=FOLDER"
        raise ConfigError(f"{where}: expected folders or lists with pictures, got {names}: {way}")
    return sorted(found)


class PhotoSet:
    """Pictures by number, of 1, 3 or 4 channels as `read_image` makes them from any file.

    Those that turn out to be unreadable are None. `shorter_sides` has the shorter side of each in pixels.
    """

    def __init__(self, paths: Sequence[Path], cache_bytes: float = 0, channels: int = 3) -> None:
        self.channels = channels
        found: list[tuple[Path, tuple[int, int], Tensor | None]] = [(path, _sides(path), None) for path in paths]
        left_out = [path for path, sides, _ in found if not all(sides)]
        found = [row for row in found if all(row[1])]
        if channels * sum(width * height for _, (width, height), _ in found) <= cache_bytes:
            found = [(path, sides, self._read_or_none(path)) for path, sides, _ in found]
            left_out += [path for path, _, picture in found if picture is None]
            found = [row for row in found if row[2] is not None]
        self._cached = [picture for _, _, picture in found if picture is not None]
        self._names = np.array([os.fsencode(path) for path, _, _ in found], dtype=np.bytes_)
        self.shorter_sides = np.array([min(sides) for _, sides, _ in found], dtype=np.int32)
        self._bad = torch.zeros(len(found), dtype=torch.bool).share_memory_()
        if left_out:
            names = some(map(str, left_out), 3)
            logger.warning("%d of %d pictures cannot be read and are left out: %s", len(left_out), len(paths), names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def readable(self) -> int:
        """How many of the pictures are not known to be unreadable, in all processes."""
        return len(self) - int(self._bad.sum())

    def __getitem__(self, index: int) -> Tensor | None:
        """(channels, H, W) uint8, or None for a file whose end is missing or the like."""
        if self._cached:
            return self._cached[index]
        if self._bad[index]:
            return None
        photo = self._read_or_none(os.fsdecode(self._names[index]))
        if photo is None:
            self._bad[index] = True
            logger.warning("a picture cannot be read and is left out: %s", os.fsdecode(self._names[index]))
        return photo

    def _read_or_none(self, path: str | os.PathLike[str]) -> Tensor | None:
        try:
            return read_photo(path, self.channels)
        except ValueError:
            return None


def _sides(path: Path) -> tuple[int, int]:
    """Width and height of a picture, from its header; (0, 0) where that cannot be read."""
    try:
        with Image.open(path) as image:
            return image.width, image.height
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError):
        return 0, 0


def check_crops(crops: Sequence[int], factor: int, shorter_sides: Sequence[int], *, staged: bool) -> None:
    """ConfigError for crops that are no whole latent cells, or for which every picture would be enlarged too much.

    Args:    crops: their sides in pixels, as those of a latent cell, `factor`, and of the pictures.
             staged: whether the crops are those of `data.stages`.
    """
    setting = "data.crop, data.stages" if staged else "data.crop"
    largest = max(shorter_sides)
    for side in crops:
        if side % factor:
            near = max(1, round(side / factor)) * factor
            raise ConfigError(f"{setting}: expected multiples of {factor} pixels, got {side}: change it to {near}")
        if side > MOST_ENLARGED * largest:
            raise ConfigError(
                f"{setting}: expected a crop of at most {MOST_ENLARGED * largest} pixels, {MOST_ENLARGED} times the "
                f"shorter side of the largest picture ({largest}), got {side}: lower it, or give larger pictures"
            )


def small_note(shorter_sides: Sequence[int], stages: Sequence[tuple[float, int, int]]) -> str | None:
    """The note, if more than half of the pictures are smaller than the largest crop; sides in pixels."""
    crop = max(size for _, size, _ in stages)
    small = sorted(side for side in shorter_sides if side < crop)
    if 2 * len(small) <= len(shorter_sides):
        return None
    setting = "data.crop" if len(stages) == 1 else "the crops of data.stages"
    sides = f"{small[0]}" if small[0] == small[-1] else f"{small[0]} to {small[-1]}"
    return (
        f"{len(small)} of {len(shorter_sides)} pictures are smaller than the crop of {crop} pixels (shorter sides: "
        f"{sides}), hence squares of these sides are enlarged to it, which makes them soft: lower {setting}, or give "
        "larger pictures"
    )
