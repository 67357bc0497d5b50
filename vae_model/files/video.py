"""Clips into video files, by PyAV: frames as they come, the file whole or not at all, and no damage on the way.

A player believes the tags of a file, and the numbers in it are made by another setting; both say BT.709, limited range,
at every size. What is written without tags is read as BT.601 by most programs and as BT.709 from 720 lines on by
browsers. Numbers are rounded here: PyAV turns floats into bytes half a step too bright.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from ..errors import InputError
from ..errors.listed import first_line
from .atomic import atomic_path, require_writable
from .images import to_bytes

SCALING = 0x42002
"""FFmpeg's bilinear, accurate_rnd and full_chroma_int: with less, white of ten bits is read as 253, and the last
columns of some widths are left out. PyAV 17 has no names for the last two and takes the number."""
_BT709 = {"colorspace": 1, "color_range": 1, "color_primaries": 1, "color_trc": 1}


class Video(NamedTuple):
    """How clips are written into video files."""

    rate: Fraction = Fraction(24)
    """Frames a second."""
    chroma: str = "420"
    """"420" (colour at half the size, which every player takes) or "444", where the kind of file leaves a choice."""
    lossless: bool = False


class _Coding(NamedTuple):
    codec: str
    pixels: str
    options: dict[str, str]
    chain: tuple[tuple[str, str], ...] = ()
    """Filters of FFmpeg that make its pixels instead."""


_FAST_START = {"movflags": "+faststart"}
_H264 = {
    "420": _Coding("libx264", "yuv420p", {"crf": "14"}),
    "444": _Coding("libx264", "yuv444p", {"crf": "14"}),
    "lossless": _Coding("libx264rgb", "rgb24", {"qp": "0"}),  # crf 0 loses where there are ten bits
}
_VP9 = {
    "420": _Coding("libvpx-vp9", "yuv420p", {"crf": "18", "b": "0", "row-mt": "1"}),
    "444": _Coding("libvpx-vp9", "yuv444p", {"crf": "18", "b": "0", "row-mt": "1"}),
    "lossless": _Coding("libvpx-vp9", "gbrp", {"lossless": "1", "row-mt": "1"}),
}
VIDEOS: dict[str, dict[str, _Coding]] = {
    ".mp4": _H264,
    ".mov": _H264,
    ".webm": _VP9,
    ".mkv": {"lossless": _Coding("ffv1", "bgr0", {"level": "3", "slicecrc": "1"})},
    ".apng": {"lossless": _Coding("apng", "rgb24", {})},
    ".webp": {"lossless": _Coding("libwebp", "bgra", {"lossless": "1"})},  # libwebp_anim leaves out equal frames
    ".gif": {"256": _Coding("gif", "pal8", {}, (("palettegen", "stats_mode=single"), ("paletteuse", "new=1")))},
}
"""Endings -> ways of writing; the first one where nothing is asked for, the only one where there is no choice."""
_CONTAINER = {".mp4": _FAST_START, ".mov": _FAST_START, ".webp": {"loop": "0"}, ".apng": {"plays": "0"}}


def parse_rate(text: str) -> Fraction:
    """Frames a second of "24", "23.976" (which stands for 24000/1001) or "24000/1001"; InputError otherwise."""
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    broadcast = Fraction(round(rate * Fraction(1001, 1000)) * 1000, 1001)
    if rate.denominator > 1 and abs(broadcast - rate) < Fraction(1, 500):
        rate = broadcast
    if not Fraction(1, 10) <= rate <= 1000 or rate.denominator > 100000:
        raise InputError(f"--fps: expected frames a second, such as 24 or 24000/1001, got {text!r}: say it so")
    return rate


def require_av() -> Any:
    """PyAV's module; InputError where it is not installed."""
    try:
        return import_module("av")
    except ImportError as error:
        raise InputError(
            "video files: expected the package av (PyAV), found none: pip install 'exact-vae[video]', or write frames "
            "(.png) or an array (.npy)"
        ) from error


def require_video(target: Path, video: Video) -> None:
    """InputError, before any work, for what this kind of file cannot be."""
    ways, ending = VIDEOS[target.suffix.lower()], target.suffix.lower()
    if video.lossless and "lossless" not in ways:
        raise InputError(f"--lossless: expected a kind of file that can, got {ending}: take .mkv, .webm, .mp4 or .apng")
    if video.chroma != Video().chroma and video.chroma not in ways:
        raise InputError(f"--chroma: expected .mp4, .mov or .webm, got {ending}: leave it out, or change the ending")
    require_av()


def _coding(target: Path, shape: tuple[int, ...], video: Video) -> _Coding:
    """For frames (F, H, W, 3). Where a side is odd, H.264 holds it with all of its colours alone."""
    ways = VIDEOS[target.suffix.lower()]
    name = "lossless" if video.lossless else "444" if ways is _H264 and (shape[1] | shape[2]) & 1 else video.chroma
    return ways.get(name, next(iter(ways.values())))


def described(target: Path, shape: tuple[int, ...], video: Video) -> str:
    """What such a file is, such as "H.264 4:2:0 at 24 frames a second"."""
    codec, pixels = _coding(target, shape, video)[:2]
    names = {"libx264": "H.264", "libx264rgb": "H.264", "libvpx-vp9": "VP9", "ffv1": "FFV1", "apng": "APNG"}
    kept = {"yuv420p": "4:2:0", "yuv444p": "4:4:4", "pal8": "256 colours a frame"}.get(pixels, "lossless")
    told = f"{names.get(codec, codec.removeprefix('lib').upper())} {kept} at {video.rate} frames a second"
    odd = pixels == "yuv444p" and video.chroma == "420"
    return f"{told} (a side is odd, which 4:2:0 cannot hold)" if odd else told


@contextmanager
def video_writer(
    target: Path, shape: tuple[int, ...], video: Video | None = None
) -> Generator[Callable[[Tensor], None], None, None]:
    """Gives what takes the frames (n, H, W, 3), 0..1, of a clip of `shape` (F, H, W, 3), group by group.

    Raises: InputError where PyAV is missing; ValueError, in one line, for what the encoder refuses and for NaN. In each
            case nothing is left of the file.
    """
    av, video = require_av(), video or Video()
    if len(shape) != 4 or shape[3] != 3:
        raise InputError(f"clip: expected frames (F, H, W, 3) for {target.name}, got {shape}: take .npy")
    coding, (frames, height, width, _) = _coding(target, shape, video), shape
    require_writable(target)
    with atomic_path(target) as temporary:
        container = av.open(str(temporary), "w", options=_CONTAINER.get(target.suffix.lower(), {}))
        try:
            with _worded(av, target, shape):
                stream = container.add_stream(coding.codec, rate=video.rate, options=coding.options)
                stream.width, stream.height, stream.pix_fmt = width, height, coding.pixels
                stream.codec_context.time_base = 1 / video.rate
                for name, value in _BT709.items() if coding.pixels.startswith("yuv") else ():
                    setattr(stream.codec_context, name, value)
                convert = _filtered(av, coding, shape, video) if coding.chain else _converted(coding)
            written = 0

            def take(group: Tensor) -> None:
                nonlocal written
                for picture in group:
                    frame = av.VideoFrame.from_ndarray(to_bytes(picture), format="rgb24")
                    frame.pts, frame.time_base, written = written, 1 / video.rate, written + 1
                    put(frame)

            def put(frame: Any) -> None:
                with _worded(av, target, shape):
                    for one in convert(frame):
                        container.mux(stream.encode(one))

            yield take
            put(None)
            container.mux(stream.encode(None))
            container.close()
        except BaseException:
            with suppress(Exception):
                container.close()
            raise
        found = _count(av, temporary)
        if not frames == written == found:
            raise RuntimeError(f"clip: expected {frames} frames, got {written}, in the file {found}: nothing is kept")


def _converted(coding: _Coding) -> Callable[[Any], Iterable[Any]]:
    matrix = {"dst_colorspace": "ITU709", "dst_color_range": "MPEG"} if coding.pixels.startswith("yuv") else {}

    def convert(frame: Any) -> Iterable[Any]:
        if frame is None:
            return ()
        made = frame.reformat(format=coding.pixels, interpolation=SCALING, **matrix)
        made.pts, made.time_base = frame.pts, frame.time_base
        return (made,)

    return convert


def _filtered(av: Any, coding: _Coding, shape: tuple[int, ...], video: Video) -> Callable[[Any], Iterable[Any]]:
    """Two filters, of which the first makes what the second wants beside the frame: palettes."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=shape[2], height=shape[1], format=av.VideoFormat("rgb24"), time_base=1 / video.rate)
    split, (make, use), sink = graph.add("split"), (graph.add(*each) for each in coding.chain), graph.add("buffersink")
    source.link_to(split)
    split.link_to(make, 0, 0)
    split.link_to(use, 1, 0)
    make.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()

    def convert(frame: Any) -> Iterable[Any]:
        graph.push(frame)
        with suppress(av.error.BlockingIOError, av.error.EOFError):  # it wants more, or has come to its end
            while True:
                yield graph.pull()

    return convert


@contextmanager
def _worded(av: Any, target: Path, shape: tuple[int, ...]) -> Generator[None, None, None]:
    try:
        yield
    except (av.error.FFmpegError, av.codec.codec.UnknownCodecError) as error:
        raise ValueError(
            f"clip: expected frames that a {target.suffix} file can hold, got {shape[2]} x {shape[1]}: take .mkv or "
            f".png ({first_line(error)})"
        ) from error


def _count(av: Any, path: Path) -> int:
    """Frames in a finished file; PyAV reads no animated WebP."""
    if path.suffix.lower() == ".webp":
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1)
    with av.open(str(path)) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size)
