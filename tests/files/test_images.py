"""Image files of every kind that Pillow makes, what is said about damaged ones, and exact round trips."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from exact_vae.vae_model.files.images import read_image, write_image
from PIL import Image

WIDTH, HEIGHT = 7, 5


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def read(path: Path) -> tuple[np.ndarray, list[str]]:
    """The image as 8-bit steps, not rounded, so that exact equality can be asked for."""
    x, notes = read_image(path)
    assert x.dtype == torch.float32
    assert x.ndim == 4
    assert x.shape[0] == 1
    assert x.shape[3] == 3
    return (x[0] * 255).numpy(), notes


def assert_same(found: np.ndarray, wanted: np.ndarray, steps: float = 1e-4) -> None:
    np.testing.assert_allclose(found, wanted.astype(np.float32), rtol=0, atol=steps)


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [(".png", mode) for mode in ("1", "L", "P", "RGB")]
    + [(".tif", mode) for mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB")]
    + [(".jpg", "L"), (".jpg", "RGB"), (".jpg", "CMYK"), (".webp", "RGB")],
)
def test_modes_without_alpha(tmp_path: Path, pixels: np.ndarray, suffix: str, mode: str) -> None:
    colour = Image.fromarray(pixels)
    if mode == "LAB":
        image = Image.frombytes("LAB", colour.size, pixels.tobytes())
    else:
        image = colour.convert(mode)
    image.save(tmp_path / f"a{suffix}")
    found, notes = read(tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as stored:
        assert stored.mode == mode
        assert_same(found, np.asarray(stored.convert("RGB")))
    assert notes == []


@pytest.mark.parametrize(
    ("suffix", "mode"), [(".png", "LA"), (".png", "RGBA"), (".tif", "LA"), (".tif", "RGBA"), (".webp", "RGBA")]
)
def test_alpha_is_dropped_and_not_blended(tmp_path: Path, pixels: np.ndarray, suffix: str, mode: str) -> None:
    image = Image.fromarray(pixels).convert(mode[:-1])
    wanted = np.asarray(image.convert("RGB"))
    image.putalpha(Image.fromarray(np.full((HEIGHT, WIDTH), 128, np.uint8)))
    image.save(tmp_path / f"a{suffix}", **({"lossless": True, "exact": True} if suffix == ".webp" else {}))
    found, notes = read(tmp_path / f"a{suffix}")
    assert_same(found, wanted)
    assert notes == ["alpha channel dropped"]


@pytest.mark.parametrize("transparency", [3, bytes([0, 128, 255])])
def test_transparent_palette(tmp_path: Path, pixels: np.ndarray, transparency: int | bytes) -> None:
    image = Image.fromarray(pixels).quantize(8)
    image.save(tmp_path / "a.png", transparency=transparency)
    found, notes = read(tmp_path / "a.png")
    assert_same(found, np.asarray(image.convert("RGB")))
    assert notes == ["alpha channel dropped"]


def test_transparent_colour_of_a_file_without_alpha(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=tuple(pixels[0, 0].tolist()))
    found, notes = read(tmp_path / "a.png")
    assert_same(found, pixels)
    assert notes == ["alpha channel dropped"]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_keeps_all_bits(tmp_path: Path, suffix: str) -> None:
    grey = np.array([[0, 1, 255, 256], [257, 32768, 65534, 65535]], np.uint16)
    Image.fromarray(grey).save(tmp_path / f"a{suffix}")
    x, notes = read_image(tmp_path / f"a{suffix}")
    assert np.array_equal(np.rint(x[0, :, :, 1].numpy().astype(np.float64) * 65535), grey)
    assert torch.equal(x[..., 0], x[..., 2])
    assert notes == []


def test_16_bit_grey_of_the_other_byte_order(tmp_path: Path) -> None:
    grey = np.array([[0, 1, 255, 256], [257, 32768, 65534, 65535]], np.uint16)
    image = Image.frombytes("I;16B", (4, 2), grey.astype(">u2").tobytes())
    image.save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as stored:
        assert stored.mode == "I;16B"
    x, _ = read_image(tmp_path / "a.tif")
    assert np.array_equal(np.rint(x[0, :, :, 0].numpy().astype(np.float64) * 65535), grey)


def test_32_bit_integers_are_read_as_16_bit_values(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1000, 65535]], np.int32)).save(tmp_path / "a.tif")
    x, notes = read_image(tmp_path / "a.tif")
    torch.testing.assert_close(x[0, 0, :, 0] * 65535, torch.tensor([0.0, 1000.0, 65535.0]), rtol=1e-6, atol=0)
    assert notes == []
    Image.fromarray(np.array([[-5, 70000]], np.int32)).save(tmp_path / "a.tif")
    x, notes = read_image(tmp_path / "a.tif")
    assert x[0, 0, :, 0].tolist() == [0, 1]
    assert notes == ["values outside 0 (black) to 65535 (white) were clipped"]


def test_float_images(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.1234567, 1.0]], np.float32)).save(tmp_path / "a.tif")
    x, notes = read_image(tmp_path / "a.tif")
    assert x[0, 0, :, 2].tolist() == [0.0, float(np.float32(0.1234567)), 1.0]
    assert notes == []
    Image.fromarray(np.array([[-1.0, 2.0]], np.float32)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[1] == ["values outside 0 (black) to 1.0 (white) were clipped"]
    Image.fromarray(np.array([[np.nan, 2.0]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"^image: .*NaN"):
        read_image(tmp_path / "a.tif")


def test_16_bit_colour_is_read_with_a_note(tmp_path: Path) -> None:
    # Pillow cannot write such a file, so this is one by hand: PNG, 1x1, 16 bits, colour.
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = zlib.compress(b"\0" + struct.pack(">HHH", 0xFF12, 0x8034, 0))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
    )
    found, notes = read(tmp_path / "a.png")
    assert_same(found, np.array([[[255, 128, 0]]]))
    assert notes == ["16-bit colour was read with 8 bits per channel"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, pixels: np.ndarray, orientation: int) -> None:
    # How a stored image is turned upright, by the number in its EXIF data (CIPA DC-008, 4.6.5.1, Orientation).
    upright = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(pixels, 1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    found, notes = read(tmp_path / "a.png")
    assert_same(found, upright[orientation])
    assert notes == []


def test_orientation_of_a_16_bit_file(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], np.uint16)).save(tmp_path / "a.png", exif=exif)
    x, _ = read_image(tmp_path / "a.png")
    assert np.rint(x[0, :, :, 0].numpy() * 65535).tolist() == [[4, 1], [5, 2], [6, 3]]


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".webp", ".png"])
def test_the_first_frame_of_several(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:], **options)
    found, notes = read(tmp_path / f"a{suffix}")
    assert_same(found[0, 0], np.array([255, 0, 0]))
    assert "only the first of 3 frames was read" in notes


def test_more_than_one_band_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: np.ndarray) -> None:
    monkeypatch.setattr("exact_vae.vae_model.files.images._BAND_PIXELS", 2 * WIDTH)
    write_image(torch.from_numpy(pixels).float() / 255, tmp_path / "a.png")
    assert_same(read(tmp_path / "a.png")[0], pixels)


def test_large_images_open_and_the_limit_of_pillow_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 1200 pixels are now a "decompression bomb" to Pillow.
    assert read_image(tmp_path / "a.png")[0].shape == (1, 30, 40, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    (tmp_path / "b.png").write_bytes(b"junk")
    with pytest.raises(ValueError, match="image: expected"):
        read_image(tmp_path / "b.png")
    assert Image.MAX_IMAGE_PIXELS == 100


def test_absurd_sizes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "a.png")
    monkeypatch.setattr("exact_vae.vae_model.files.images.MAX_PIXELS", 1199)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ValueError, match=r"40x30 is more than 1199 pixels"),
    ):
        read_image(tmp_path / "a.png")


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^image: expected a file, got .*none\.png: no such file$"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"^image: expected a file"):
        read_image(tmp_path)


@pytest.mark.parametrize("content", [b"", b"this is text", b"\x89PNG\r\n\x1a\n", b"<svg></svg>"])
def test_not_an_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"^image: expected [^\n]*, got [^\n]*a\.png: [^\n]+$") as caught:
        read_image(tmp_path / "a.png")
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_truncated(tmp_path: Path, kind: str, kept: float) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * kept)])
    with pytest.raises(ValueError, match=r"^image: expected a [^\n]*, got [^\n]*a\.jpg: [^\n]+$") as caught:
        read_image(tmp_path / "a.jpg")
    assert caught.value.__cause__ is not None
