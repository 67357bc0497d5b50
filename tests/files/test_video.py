"""Clips into video files and back: no value, frame, tag or time is lost on the way but where that is said."""

from __future__ import annotations

import struct
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_vae.vae_model.errors import InputError
from exact_vae.vae_model.files import video as video_module
from exact_vae.vae_model.files.video import VIDEOS, Video, described, parse_rate, require_video, video_writer
from exact_vae.vae_model.files.video_read import read_video
from torch import Tensor

av: Any = pytest.importorskip("av", reason="video files are read and written by PyAV, the extra `video`")

LOSSLESS = [ending for ending, ways in VIDEOS.items() if "lossless" in ways]
COLOURS = torch.tensor(
    [
        *((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1)),
        *((1, 1, 1), (0, 0, 0), (0.5, 0.5, 0.5), (0.9, 0.5, 0.1), (0.2, 0.6, 0.4), (0.94, 0.71, 0.59)),
    ]
).float()
SIDE = 48


def noise(frames: int, height: int, width: int) -> Tensor:
    """Of whole numbers of 8 bits."""
    generator = torch.Generator().manual_seed(frames + height + width)
    return torch.randint(0, 256, (frames, height, width, 3), generator=generator) / 255


def patches(frames: int = 5) -> Tensor:
    """Twelve flat patches, four in a row, in every frame."""
    rows = COLOURS.reshape(3, 4, 3).repeat_interleave(SIDE, 0).repeat_interleave(SIDE, 1)
    return rows.expand(frames, -1, -1, -1).contiguous()


def off_patches(frames: Tensor) -> float:
    """Mean difference of the patches' means, of 255; frames (F, H, W, 3)."""
    cells = frames.reshape(len(frames), 3, SIDE, 4, SIDE, 3)[:, :, 8:-8, :, 8:-8].mean((0, 2, 4))
    return float((cells.reshape(12, 3) - COLOURS).abs().mean()) * 255


def write(path: Path, frames: Tensor, video: Video | None = None, at_a_time: int = 2) -> Path:
    with video_writer(path, tuple(frames.shape), video) as take:
        for group in frames.split(at_a_time):
            take(group)
    return path


def encoded(path: Path, codec: str, pixels: str, pictures: list[np.ndarray], **told: Any) -> Path:
    """By PyAV itself, as others write their files. told: of the codec context; options; times; matrix."""
    options, times, matrix = (
        told.pop(name, default) for name, default in (("options", {}), ("times", None), ("matrix", {}))
    )
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=told.pop("rate", 24), options=options)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], pixels
        for name, value in told.items():
            setattr(stream.codec_context, name, value)
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24" if picture.dtype == np.uint8 else "rgb48le")
            frame = frame.reformat(format=pixels, interpolation=video_module.SCALING, **matrix)
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def as_bytes(frames: Tensor) -> list[np.ndarray]:
    return list((frames * 255).round().to(torch.uint8).numpy())


# -- out ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 24, 40), (5, 33, 57), (9, 16, 24)], ids=str)
@pytest.mark.parametrize("ending", LOSSLESS)
def test_what_is_lossless_holds_every_value(tmp_path: Path, ending: str, shape: tuple[int, int, int]) -> None:
    clip = noise(*shape)
    back = read_video(write(tmp_path / f"a{ending}", clip, Video(Fraction(16), lossless=True)))
    assert torch.equal(back.frames[0], clip)
    assert back.notes == []
    assert back.rate == 16 or (shape[0] == 1 and ending in (".webp", ".apng", ".webm", ".mkv"))
    assert [path.name for path in tmp_path.iterdir()] == [f"a{ending}"]


@pytest.mark.parametrize("ending", VIDEOS)
def test_equal_frames_all_stay(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a{ending}", patches(8))
    assert len(read_video(path).frames[0]) == 8
    assert off_patches(read_video(path).frames[0]) <= 1.0


@pytest.mark.parametrize("chroma", ["420", "444"])
@pytest.mark.parametrize("ending", [".mp4", ".mov", ".webm"])
def test_colours_and_tags_agree(tmp_path: Path, ending: str, chroma: str) -> None:
    path = write(tmp_path / f"a{ending}", patches(), Video(chroma=chroma))
    back = read_video(path)
    print(f"{ending} {chroma}, PyAV: {off_patches(back.frames[0]):.2f} of 255")
    assert off_patches(back.frames[0]) <= 1.0
    assert back.notes == []
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert context.pix_fmt == f"yuv{chroma}p"
        assert (context.colorspace, context.color_range, context.color_primaries, context.color_trc) == (1, 1, 1, 1)


def test_another_reader_sees_the_colours(tmp_path: Path) -> None:
    cv2: Any = pytest.importorskip("cv2", reason="OpenCV is no extra of this project")
    reader, pictures = cv2.VideoCapture(str(write(tmp_path / "a.mp4", patches()))), []
    while (found := reader.read())[0]:
        pictures.append(torch.from_numpy(found[1][..., ::-1].copy()) / 255)
    assert len(pictures) == 5
    print(f".mp4, OpenCV: {off_patches(torch.stack(pictures)):.2f} of 255")
    assert off_patches(torch.stack(pictures)) <= 1.0


def test_values_are_rounded_to_the_nearest(tmp_path: Path) -> None:
    values = (torch.arange(256.0)[:, None] + torch.tensor([-0.4, 0.0, 0.4])).clamp(0, 255) / 255
    back = read_video(write(tmp_path / "a.mkv", values[None, None].repeat(1, 16, 1, 1)))
    assert torch.equal(back.frames[0, 0, 0], torch.arange(256)[:, None].expand(-1, 3) / 255)


@pytest.mark.parametrize(
    "rate", [Fraction(16), Fraction(24), Fraction(24000, 1001), Fraction(30), Fraction(60)], ids=str
)
@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".webm", ".gif"])
def test_rates_come_back(tmp_path: Path, ending: str, rate: Fraction) -> None:
    back = read_video(write(tmp_path / f"a{ending}", noise(33, 16, 16), Video(rate)))
    assert back.frames.shape[1] == 33
    assert back.notes == []
    assert back.rate == (pytest.approx(float(rate), rel=0.02) if ending == ".gif" else rate)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        *(("24", Fraction(24)), ("23.976", Fraction(24000, 1001)), ("29.97", Fraction(30000, 1001))),
        *(("30000/1001", Fraction(30000, 1001)), ("12.5", Fraction(25, 2)), ("59.94", Fraction(60000, 1001))),
    ],
)
def test_rates_as_people_write_them(text: str, rate: Fraction) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "0", "-24", "1e9", "24/0", "nan"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(
        InputError, match=r"^--fps: expected frames a second, such as 24 or 24000/1001, got .*: say it so$"
    ):
        parse_rate(text)


def test_odd_sides_keep_all_columns_and_are_told(tmp_path: Path) -> None:
    clip = noise(3, 31, 41)
    assert "(a side is odd, which 4:2:0 cannot hold)" in described(Path("a.mp4"), tuple(clip.shape), Video())
    assert "odd" not in described(Path("a.mp4"), (3, 30, 40, 3), Video())
    for ending in (".mp4", ".webm"):
        assert read_video(write(tmp_path / f"a{ending}", clip)).frames.shape == (1, 3, 31, 41, 3)


@pytest.mark.parametrize(
    ("ending", "video", "text"),
    [
        (".gif", Video(lossless=True), "--lossless: expected a kind of file that can, got .gif: "),
        (".mkv", Video(chroma="444"), "--chroma: expected .mp4, .mov or .webm, got .mkv: "),
    ],
)
def test_what_a_kind_cannot_be(ending: str, video: Video, text: str) -> None:
    with pytest.raises(InputError, match=text):
        require_video(Path(f"a{ending}"), video)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        (noise(2, 16, 16), RuntimeError, "expected 3 frames, got 2, in the file 2: nothing is kept"),
        (noise(3, 16, 16) * float("nan"), ValueError, "expected finite numbers, got NaN"),
    ],
)
@pytest.mark.parametrize("ending", [".mp4", ".gif", ".webp"])
def test_nothing_is_left_of_what_failed(
    tmp_path: Path, given: Tensor, error: type[Exception], text: str, ending: str
) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"older")
    with pytest.raises(error, match=text), video_writer(path, (3, 16, 16, 3)) as take:
        take(given)
    assert path.read_bytes() == b"older"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_an_encoder_refuses_is_one_line(tmp_path: Path) -> None:
    size = (1, 16, 70000, 3)
    with pytest.raises(ValueError, match=r"^clip: expected frames that a \.gif file can hold, got 70000 x 16: "):
        write(tmp_path / "a.gif", torch.zeros(size))
    with pytest.raises(
        InputError, match=r"expected frames \(F, H, W, 3\) for a\.mp4, got \(1, 16, 16, 4\): take \.npy"
    ):
        write(tmp_path / "a.mp4", torch.zeros(1, 16, 16, 4))
    assert list(tmp_path.iterdir()) == []


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    for call in (lambda: write(tmp_path / "a.mp4", noise(1, 16, 16)), lambda: read_video(tmp_path / "a.mp4")):
        with pytest.raises(
            InputError, match=r"^video files: expected the package av \(PyAV\), found none: pip install "
        ):
            call()


# -- in ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("matrix", "number"), [("ITU601", 5), ("ITU709", 1), ("SMPTE240M", 7)])
@pytest.mark.parametrize(("span", "value"), [("MPEG", 1), ("JPEG", 2)])
def test_the_file_s_matrix_and_range_are_taken(tmp_path: Path, matrix: str, number: int, span: str, value: int) -> None:
    path = encoded(
        *(tmp_path / "a.mp4", "libx264", "yuv444p", as_bytes(patches())),
        options={"crf": "8"},
        matrix={"dst_colorspace": matrix, "dst_color_range": span},
        colorspace=number,
        color_range=value,
    )
    assert off_patches(read_video(path).frames[0]) <= 1.2


def test_a_file_without_a_matrix_is_told(tmp_path: Path) -> None:
    back = read_video(encoded(tmp_path / "a.mp4", "libx264", "yuv444p", as_bytes(patches()), options={"crf": "8"}))
    assert off_patches(back.frames[0]) <= 1.0
    assert back.notes == ["the file does not tell its matrix: BT.601 was taken"]


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv444p10le", "yuv422p"])
def test_white_is_white_and_black_black(tmp_path: Path, pixels: str) -> None:
    kind = np.uint16 if "10" in pixels else np.uint8
    pictures = [np.full((32, 46, 3), value, kind) for value in (np.iinfo(kind).max, 0)]
    matrix = {"dst_colorspace": "ITU709", "dst_color_range": "MPEG"}
    path = encoded(tmp_path / "a.mkv", "ffv1", pixels, pictures, matrix=matrix, colorspace=1, color_range=1)
    back = read_video(path).frames[0]
    assert back[0].min() >= 1 - 0.6 / 255
    assert back[1].max() <= 0.6 / 255


def test_a_phone_s_turn_is_undone(tmp_path: Path) -> None:
    clip = noise(2, 16, 32)
    path = write(tmp_path / "a.mp4", clip, Video(lossless=True))
    stored, turn = bytearray(path.read_bytes()), (0, 65536, 0, -65536, 0, 0, 16 * 65536, 0, 0x40000000)
    place = stored.find(b"tkhd") + 44  # the matrix of the track: a quarter clockwise
    stored[place : place + 36] = struct.pack(">9i", *turn)
    path.write_bytes(stored)
    assert torch.equal(read_video(path).frames[0], clip.rot90(-1, (1, 2)))


def test_uneven_times_are_told(tmp_path: Path) -> None:
    path = encoded(tmp_path / "a.mkv", "ffv1", "bgr0", as_bytes(noise(6, 16, 16)), times=[0, 40, 80, 400, 440, 1200])
    back = read_video(path)
    assert torch.equal(back.frames[0], noise(6, 16, 16))
    assert any(note.startswith("frames come at uneven times, ") for note in back.notes)


def test_what_is_not_taken_along_is_told(tmp_path: Path) -> None:
    clip = as_bytes(noise(2, 16, 16))
    wide = encoded(tmp_path / "a.mp4", "libx264", "yuv420p", clip, sample_aspect_ratio=Fraction(4, 3))
    assert any(note.startswith("pixels are not square (4/3)") for note in read_video(wide).notes)
    for transfer, primaries, text in [(16, 9, "high dynamic range (PQ)"), (1, 9, "primaries of BT.2020")]:
        told = {"colorspace": 9, "color_range": 1, "color_trc": transfer, "color_primaries": primaries}
        path = encoded(tmp_path / "b.mkv", "ffv1", "yuv444p10le", clip, **told)
        assert any(note.startswith(text) for note in read_video(path).notes)
    with av.open(str(tmp_path / "c.mkv"), "w") as container:
        pictures, sound = container.add_stream("ffv1", rate=24), container.add_stream("pcm_s16le", rate=8000)
        pictures.width, pictures.height, pictures.pix_fmt = 16, 16, "bgr0"
        container.mux(pictures.encode(av.VideoFrame.from_ndarray(clip[0], format="rgb24").reformat(format="bgr0")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))
        container.mux(pictures.encode(None))
        container.mux(sound.encode(None))
    assert read_video(tmp_path / "c.mkv").notes == ["sound left out"]


def test_values_of_sixteen_bits_are_kept(tmp_path: Path) -> None:
    values = np.arange(16 * 16 * 3, dtype=np.uint16).reshape(16, 16, 3) * 85
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "gbrp16le"
        frame = av.VideoFrame.from_ndarray(values, format="rgb48le").reformat(format="gbrp16le")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    back = read_video(tmp_path / "a.mkv").frames[0, 0]
    assert torch.equal(back, torch.from_numpy(values.astype(np.float32) / np.float32(65535)))


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv", ".webm", ".gif", ".apng"])
def test_files_that_are_cut_off_are_told(tmp_path: Path, ending: str, kept: float) -> None:
    path = write(tmp_path / f"a{ending}", noise(33, 48, 48))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    try:
        told = "; ".join(read_video(path).notes)
    except ValueError as error:  # what PyAV 17 has of a file whose last frame is not whole
        told = str(error)
    assert "the file may be cut off: " in told or told.startswith("clip: expected a complete video, got ")


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".webm", ".gif", ".webp"])
@pytest.mark.parametrize("content", [b"", b"no video at all"])
def test_what_is_no_video_is_one_line(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"a{ending}"
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"^clip: expected (a complete (video|WebP), got|frames, found none in) [^\n]*$"
    ):
        read_video(path)
