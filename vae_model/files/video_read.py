"""Clips out of video files, by PyAV; animated WebP by Pillow, since PyAV reads none.

Matrix and range are taken as the file says them; a file that says none is read as BT.601, as FFmpeg's own programs do
and as they write such files. Values are those stored: primaries and transfer functions are told and not converted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..errors.listed import first_line
from .video import SCALING, require_av

READ = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
"""Endings of what is always a clip."""
ANIMATED = (".gif", ".webp", ".apng")
"""Endings of pictures that may hold several, which are a clip where that is asked for."""

_END = {".gif": b"\x3b", ".apng": b"IEND\xaeB`\x82"}
"""How a whole file of a kind ends."""
_ALPHA = "alpha channel dropped"


class Clip(NamedTuple):
    """What a video file holds."""

    frames: Tensor
    """(1, F, H, W, 3), float32, 0..1."""
    rate: Fraction | None
    """Frames a second; None where it is not known."""
    notes: list[str]


def read_video(path: Path) -> Clip:
    """All frames of a file, upright.

    Raises:  ValueError, in one line, for a file that is missing, damaged, or without pictures. InputError without PyAV.
    Memory:  12 bytes per pixel and frame for the result, beside 3 (of more than eight bits 6) while it is read.
    """
    if path.suffix.lower() == ".webp":
        return _read_webp(path)
    av = require_av()
    notes: list[str] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError("it holds no pictures")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            rate = stream.average_rate or stream.guessed_rate
            times: list[Fraction | None] = []
            arrays = list(_upright(container.decode(stream), times, notes))
            if (
                path.suffix.lower() == ".gif"
            ):  # counts hundredths of a second, and its average leaves out the last frame
                notes = [note for note in notes if note != _ALPHA]
                rate = _by_times(times)
            if container.streams.audio:
                notes.append("sound left out")
            aspect = getattr(stream, "sample_aspect_ratio", None) or stream.codec_context.sample_aspect_ratio
            missing = _missing(path, stream, times, rate)
    except (av.error.FFmpegError, ValueError, OSError) as error:
        raise ValueError(
            f"clip: expected a complete video, got {path}: save or copy it again ({first_line(error)})"
        ) from error
    if missing:
        notes.append(f"the file may be cut off: {missing}")
    if aspect not in (None, 0, 1):
        notes.append(f"pixels are not square ({aspect}): taken as they are stored")
    if rate and _uneven(times, rate, Fraction(10 if path.suffix.lower() == ".gif" else 2, 1000)):
        notes.append(f"frames come at uneven times, {float(rate):.4g} a second on average: taken one after the other")
    return Clip(_joined(arrays, path), Fraction(rate) if rate else None, notes)


def _upright(frames: Iterator[Any], times: list[Fraction | None], notes: list[str]) -> Iterator[np.ndarray]:
    """Pixels as whole numbers of 8 or 16 bits."""
    for frame in frames:
        if not times:
            notes += _told(frame)
        wide = max(part.bits for part in frame.format.components) > 8
        made = frame.reformat(format="rgb48le" if wide else "rgb24", interpolation=SCALING).to_ndarray()
        times.append(None if frame.pts is None else frame.pts * frame.time_base)
        yield np.rot90(made, (frame.rotation // 90) % 4)


def _told(frame: Any) -> list[str]:
    """What a user may want to know of how values were read."""
    notes: list[str] = []
    if frame.format.name.startswith(("yuv", "nv", "p0")) and frame.colorspace in (2, 3):
        notes.append("the file does not tell its matrix: BT.601 was taken")
    transfer, primaries = getattr(frame, "color_trc", 2), getattr(frame, "color_primaries", 2)
    if transfer in (16, 18):
        notes.append(f"high dynamic range ({'PQ' if transfer == 16 else 'HLG'}): values as stored, not tone-mapped")
    elif primaries in (9, 11, 12):
        notes.append(f"primaries of {'BT.2020' if primaries == 9 else 'P3'}: values as stored, not converted")
    if frame.format.name.startswith(("yuva", "rgba", "bgra", "gbrap", "argb", "abgr")):
        notes.append(_ALPHA)
    if getattr(frame, "interlaced_frame", False):
        notes.append("interlaced: fields were left woven")
    if frame.rotation % 90:
        notes.append(f"turned by {frame.rotation} degrees in the file: only whole quarters are undone")
    return notes


def _missing(path: Path, stream: Any, times: list[Fraction | None], rate: Fraction | None) -> str:
    """What shows that a file once held more: decoders end without a word where it is cut off."""
    end = _END.get(path.suffix.lower())
    if end and not path.read_bytes().endswith(end):
        return "its end is missing"
    if stream.frames > len(times):
        return f"{len(times)} frames of {stream.frames} came out of it"
    told = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))  # as Matroska has it
    if not told or not rate or not times or times[-1] is None:
        return ""
    hours, minutes, seconds = (Fraction(part) for part in told.groups())
    whole, found = hours * 3600 + minutes * 60 + seconds, times[-1] + 1 / rate
    return f"{float(found):.4g} s of {float(whole):.4g} came out of it" if found + 1 / rate < whole else ""


def _by_times(times: list[Fraction | None]) -> Fraction | None:
    """Frames a second between the first and the last one."""
    known = [time for time in times if time is not None]
    seconds = known[-1] - known[0] if known else 0
    return Fraction((len(known) - 1) / seconds).limit_denominator(1001) if seconds else None


def _uneven(times: list[Fraction | None], rate: Fraction, off: Fraction) -> bool:
    """Whether frames are off their places by more than a kind of file that counts so coarsely makes them."""
    start = times[0] if times else None
    if start is None:
        return False
    return any(time is not None and abs(time - start - n / rate) > off for n, time in enumerate(times))


def _joined(arrays: list[np.ndarray], path: Path) -> Tensor:
    """Frames are let go one by one as they become floats."""
    if not arrays:
        raise ValueError(f"clip: expected frames, found none in {path}: save or copy it again")
    if any(one.shape != arrays[0].shape for one in arrays):
        raise InputError(f"clip: expected frames of one size, got several in {path}: scale or cut it first")
    clip = torch.empty((1, len(arrays), *arrays[0].shape))
    most = np.float32(np.iinfo(arrays[0].dtype).max)
    for number in range(len(arrays)):
        clip[0, number] = torch.from_numpy(arrays[number].astype(np.float32) / most)
        arrays[number] = arrays[number][:0]
    return clip


def _read_webp(path: Path) -> Clip:
    arrays: list[np.ndarray] = []
    milliseconds: list[int] = []
    try:
        with Image.open(path) as image:
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                arrays.append(np.asarray(image.convert("RGB")))
                milliseconds.append(int(image.info.get("duration", 0)))
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise ValueError(
            f"clip: expected a complete WebP, got {path}: save or copy it again ({first_line(error)})"
        ) from error
    whole = sum(milliseconds)
    rate = Fraction(1000 * len(milliseconds), whole).limit_denominator(1001) if whole else None
    if rate and all(abs(each - Fraction(1000, round(rate) or 1)) < 1 for each in milliseconds):
        rate = Fraction(round(rate))  # times are whole milliseconds
    uneven = max(milliseconds) - min(milliseconds) > 2
    return Clip(_joined(arrays, path), rate, ["frames stand for uneven times: taken one after the other"] * uneven)
