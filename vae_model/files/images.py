"""Images in and out of files, between Pillow and tensors of floats.

What Pillow itself reduces stays reduced: 16-bit *grey* files keep 16 bits, but Pillow reads 16-bit *colour* PNG and
TIFF files with 8 bits per channel, and a note says so. Colour profiles are ignored, as ComfyUI ignores them, except
that LAB is converted to sRGB. Transparency is dropped, not blended, but where four channels are asked for.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from ..errors.listed import first_line
from .atomic import atomic_path, require_writable

MAX_PIXELS = 2**31 - 1
# Rows are converted in bands of about this many pixels, so that no second full-size copy exists.
_BAND_PIXELS = 2**21
_WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
# Damaged files make Pillow's many format readers fail in any of these ways.
_BROKEN_FILE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, ArithmeticError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)

_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG", "compress_level": 4},
    ".jpg": {"format": "JPEG"},
    ".jpeg": {"format": "JPEG"},
    ".webp": {"format": "WEBP"},
    ".tif": {"format": "TIFF", "compression": "tiff_adobe_deflate"},
    ".tiff": {"format": "TIFF", "compression": "tiff_adobe_deflate"},
}
SUFFIXES = tuple(_SAVE_OPTIONS)
"""What the names of pictures end in."""
# Largest width or height that the format itself can store.
_MAX_SIDE = {"JPEG": 65500, "WEBP": 16383}


def read_image(path: str | os.PathLike[str], channels: int = 3) -> tuple[Tensor, list[str]]:
    """The first frame of an image file, upright, and a note for everything in the file that was not kept.

    Args:    channels: 3 for colour; 1 for brightness as Pillow's "L" has it; 4 for colour and what is opaque.
    Returns: (1, H, W, channels), float32 in 0..1; and the notes, whole sentences without a full stop.
    Raises:  ValueError, in one line, if the file is missing, damaged, not an image, or larger than MAX_PIXELS.
    Memory:  12 bytes per pixel for the result, and Pillow's own 4 bytes per pixel while it runs.
    """
    source = Path(path)
    if source.is_dir():
        raise ValueError(f"image: expected a file, got the folder {source}: name the pictures in it")
    if not source.is_file():
        raise ValueError(f"image: expected a file, got {source}: no such file")
    try:
        with _raised_pixel_limit(), Image.open(source) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
            notes = _notes_before_loading(image)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _to_tensor(image, notes, channels), notes
    except Image.UnidentifiedImageError as error:
        raise ValueError(
            f"image: expected a PNG, JPEG, WebP or TIFF image, got {source}: convert it to one of these"
        ) from error
    except _BROKEN_FILE as error:
        reason = first_line(error)
        raise ValueError(f"image: expected a complete image, got {source}: save or copy it again ({reason})") from error


def read_photo(path: str | os.PathLike[str], channels: int = 3) -> Tensor:
    """A picture of any mode, upright, as (channels, H, W) uint8; ValueError where it cannot be read."""
    pixels = read_image(path, channels)[0][0]  # (H, W, channels)
    return (pixels * 255).round().to(torch.uint8).permute(2, 0, 1).contiguous()


def middle(photo: Tensor, size: int, multiple: int = 32) -> Tensor:
    """The middle of a (C, H, W) uint8 picture in -1..1: (C, h, w), sides up to `size`, multiples of `multiple`.

    A side below `multiple` is enlarged to it first.
    """
    height, width = photo.shape[1:]
    if min(height, width) < multiple:
        scale = multiple / min(height, width)
        larger = (max(multiple, round(height * scale)), max(multiple, round(width * scale)))
        photo = functional.interpolate(photo[None].float(), size=larger, mode="bilinear")[0]
        height, width = larger
    h, w = (min(max(size, multiple), side) // multiple * multiple for side in (height, width))
    top, left = (height - h) // 2, (width - w) // 2
    return photo[:, top : top + h, left : left + w].float() / 127.5 - 1


def write_image(x: Tensor, path: str | os.PathLike[str], *, quality: int = 95) -> None:
    """Save one image with 8 bits per channel; the suffix of `path` chooses the format; the file is whole or not there.

    Args:    x: (H, W, 3) or (1, H, W, 3), any floating type and device; rounded to the nearest step, clamped to 0..1.
             quality: 1 to 100, for JPEG and WebP; from 90 on JPEG keeps full colour resolution.
    Raises:  ValueError, in one line, for an unknown suffix, a wrong shape, a size the format cannot hold, or NaN.
    Memory:  4 bytes per pixel on the host; no full-size float copy.
    """
    require_image_suffix(path)
    if not 1 <= quality <= 100:
        raise ValueError(f"quality: expected 1 to 100, got {quality}: 95 is a good choice")
    options = dict(_SAVE_OPTIONS[Path(path).suffix.lower()])
    if options["format"] in ("JPEG", "WEBP"):
        options["quality"] = quality
    if options["format"] == "JPEG" and quality >= 90:
        options["subsampling"] = 0
    if x.ndim == 4 and x.shape[0] == 1:
        x = x[0]
    if x.ndim != 3 or x.shape[2] != 3 or x.numel() == 0 or not x.is_floating_point():
        raise ValueError(
            f"image: expected floats (H, W, 3) for one image, got {x.dtype} {tuple(x.shape)}: pass one image"
        )
    height, width, _ = x.shape
    limit = _MAX_SIDE.get(options["format"], MAX_PIXELS)
    if max(height, width) > limit:
        raise ValueError(f"image: expected at most {limit} pixels a side, got {width}x{height} for {path}: use .png")
    require_writable(path)
    image = Image.new("RGB", (width, height))
    for top, bottom in _bands(height, width):
        image.paste(Image.fromarray(to_bytes(x[top:bottom])), (0, top))
    with atomic_path(path) as temporary:
        image.save(temporary, **options)


def require_image_suffix(path: str | os.PathLike[str]) -> None:
    """ValueError, before any work, for a file name whose ending is no image format that can be written."""
    if Path(path).suffix.lower() not in _SAVE_OPTIONS:
        known = ", ".join(SUFFIXES)
        raise ValueError(f"image: expected a file name ending in {known}, got {str(path)!r}: change the suffix")


def to_bytes(band: Tensor) -> np.ndarray:
    """Floats 0..1 -> (..., C) uint8, each rounded to the nearest; ValueError for NaN."""
    band = band.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(band).all()):
        raise ValueError("image: expected finite numbers, got NaN or infinity: decode in float32, or check the latent")
    return (band * 255 + 0.5).floor_().clamp_(0, 255).to(torch.uint8).numpy()  # (rows, W, 3)


def _notes_before_loading(image: Image.Image) -> list[str]:
    """What Pillow forgets once the pixels are decoded: the number of frames and the depth of the stored samples."""
    notes: list[str] = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"only the first of {frames} frames was read")
    if image.mode not in _WIDE_MODES and any(";16" in str(tile[3]) for tile in getattr(image, "tile", [])):
        notes.append("16-bit colour was read with 8 bits per channel")
    return notes


def _to_tensor(image: Image.Image, notes: list[str], channels: int) -> Tensor:
    if channels != 4 and (image.mode[-1] in "Aa" or image.info.pop("transparency", None) is not None):
        notes.append("alpha channel dropped")
    x = torch.empty(1, image.height, image.width, channels)
    out_of_range = False
    for top, bottom in _bands(image.height, image.width):
        band = torch.from_numpy(_to_floats(image.crop((0, top, image.width, bottom)), channels))
        if image.mode in ("I", "F"):
            out_of_range |= bool(((band < 0) | (band > 1)).any())
            band.clamp_(0, 1)
        x[0, top:bottom] = band
    if out_of_range:
        white = "65535" if image.mode == "I" else "1.0"
        notes.append(f"values outside 0 (black) to {white} (white) were clipped")
    return x


_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def _to_floats(band: Image.Image, channels: int) -> np.ndarray:
    if band.mode in _WIDE_MODES:
        grey = np.asarray(band).astype(np.float32) / np.float32(65535)
    elif band.mode == "F":
        grey = np.array(band, dtype=np.float32)
        if not np.isfinite(grey).all():
            raise ValueError("its values include NaN or infinity")
    else:
        # Pillow has no direct way from "premultiplied grey" to colour.
        straight = band.convert("LA") if band.mode == "La" else band
        pixels = np.asarray(_converted(straight, _MODES[channels])).astype(np.float32) / np.float32(255)
        return pixels.reshape(*pixels.shape[:2], channels)  # (rows, W, channels)
    x = np.repeat(grey[:, :, None], channels, axis=2)  # (rows, W, channels)
    if channels == 4:
        x[:, :, 3] = 1
    return x


def _converted(band: Image.Image, mode: str) -> Image.Image:
    """By way of RGB where Pillow knows no direct one."""
    try:
        return band.convert(mode)
    except ValueError:
        return band.convert("RGB").convert(mode)


def _bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    rows = max(1, _BAND_PIXELS // width)
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


_limit_lock = threading.Lock()


@contextmanager
def _raised_pixel_limit() -> Generator[None, None, None]:
    """Let Pillow open MAX_PIXELS for the length of a read; its own limit of 89 million warns, and twice that refuses.

    The limit is one variable of the Pillow module, so the lock lets one read at a time change it and put it back.
    """
    with _limit_lock:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
