"""Blended tiles: local codecs come out whole, every pixel in its place; real autoencoders come out changed."""

from itertools import pairwise

import pytest
import torch
from exact_vae import VAE
from exact_vae.vae_model.runs.blend import blend_tiles, ramps, tile_starts
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional


def enlarge(factor: int):
    return lambda x: x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def shrink(factor: int):
    return lambda x: functional.avg_pool2d(x, factor)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], int]:
    """(size, tile, overlap) in cells: any that are allowed."""
    size = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    tile = draw(st.tuples(st.integers(1, 45), st.integers(1, 45)))
    return size, tile, draw(st.integers(0, min(tile) - 1))


# Each output pixel is the same number times weights that sum to 1 up to float32 rounding of a few terms.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


@settings(max_examples=60, deadline=None)
@given(cut=cuts(), factor=st.sampled_from([1, 2, 4, 8, 16]), batch=st.integers(1, 2), seed=st.integers(0, 99))
def test_a_local_decoder_comes_out_whole(
    cut: tuple[tuple[int, int], tuple[int, int], int], factor: int, batch: int, seed: int
) -> None:
    size, tile, overlap = cut
    x = torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed))
    shapes: list[tuple[int, ...]] = []
    counts: list[tuple[int, int]] = []

    def run(piece: Tensor) -> Tensor:
        shapes.append(tuple(piece.shape))
        return enlarge(factor)(piece)

    out = torch.full((batch, 3, size[0] * factor, size[1] * factor), torch.nan)
    result = blend_tiles(
        run, x, out, tile=tile, overlap=overlap, scale=(factor, 1), on_tile=lambda *count: counts.append(count)
    )
    assert result is out
    torch.testing.assert_close(out, enlarge(factor)(x), **CLOSE)
    assert set(shapes) == {(batch, 3, min(tile[0], size[0]), min(tile[1], size[1]))}
    assert counts == [(done, len(shapes)) for done in range(1, len(shapes) + 1)]


@settings(max_examples=60, deadline=None)
@given(cut=cuts(), factor=st.sampled_from([2, 4, 8, 16]), seed=st.integers(0, 99))
def test_a_local_encoder_comes_out_whole(
    cut: tuple[tuple[int, int], tuple[int, int], int], factor: int, seed: int
) -> None:
    size, tile, overlap = cut
    x = torch.rand(1, 1, size[0] * factor, size[1] * factor, generator=torch.Generator().manual_seed(seed))
    out = torch.full((1, 1, *size), torch.nan)
    pixels = (tile[0] * factor, tile[1] * factor)
    blend_tiles(shrink(factor), x, out, tile=pixels, overlap=overlap * factor, scale=(1, factor))
    torch.testing.assert_close(out, shrink(factor)(x), **CLOSE)


@pytest.mark.parametrize("height", [5, 13, 29])
@pytest.mark.parametrize("width", [8, 31])
def test_every_pixel_lands_in_its_place(height: int, width: int) -> None:
    """The image says where each pixel is; a tile that is laid down one pixel off changes the coordinates."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x = torch.stack([rows, columns])[None].float()
    out = torch.empty(1, 2, height * 4, width * 4)
    blend_tiles(enlarge(4), x, out, tile=(8, 8), overlap=3, scale=(4, 1))
    # Coordinates up to 31 in float32; a misplaced cell would differ by 1 times its weight, which is at least 1/16.
    torch.testing.assert_close(
        out[0, 0], (torch.arange(height * 4) // 4).float()[:, None].expand(-1, width * 4), rtol=0, atol=1e-4
    )
    torch.testing.assert_close(
        out[0, 1], (torch.arange(width * 4) // 4).float().expand(height * 4, -1), rtol=0, atol=1e-4
    )


def test_between_two_tiles_the_result_goes_over_in_a_line() -> None:
    """Tiles that disagree are joined by a ramp, without a step and without overshooting."""
    values = iter([0.0, 1.0])
    out = torch.empty(1, 1, 1, 12)
    blend_tiles(
        lambda piece: torch.full_like(piece, next(values)),
        torch.zeros(1, 1, 1, 12),
        out,
        tile=(8, 8),
        overlap=4,
        scale=(1, 1),
    )
    expected = torch.tensor([0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])
    torch.testing.assert_close(out[0, 0, 0], expected, rtol=0, atol=1e-6)  # float32 rounding of fifths


@settings(max_examples=200, deadline=None)
@given(size=st.integers(1, 300), tile=st.integers(1, 100), data=st.data())
def test_tiles_cover_and_weights_sum_to_one(size: int, tile: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    starts = tile_starts(size, tile, overlap)
    length = min(tile, size)
    assert starts[0] == 0
    assert starts[-1] + length == size
    assert all(0 < after - before <= tile - overlap for before, after in pairwise(starts))
    total = torch.zeros(size)
    for start, ramp in zip(starts, ramps(size, starts, tile), strict=True):
        assert len(ramp) == length
        assert bool((ramp > 0).all())
        total[start : start + length] += ramp
    torch.testing.assert_close(total, torch.ones(size), rtol=0, atol=1e-6)  # float32 rounding of a few terms


def test_ramps_of_a_symmetric_cut_are_symmetric() -> None:
    """Tiles that share more than half rise and fall over the same rows; neither side may win."""
    starts = tile_starts(20, 8, 6)
    weights = ramps(20, starts, 8)
    assert starts == [0, 2, 4, 6, 8, 10, 12]
    for ramp, mirrored in zip(weights, reversed(weights), strict=True):
        torch.testing.assert_close(ramp, mirrored.flip(0), rtol=0, atol=1e-6)  # float32 rounding


@pytest.mark.parametrize("overlap", [-1, 8, 100])
def test_an_overlap_as_large_as_the_tile_is_refused(overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap") as caught:
        blend_tiles(
            lambda x: x,
            torch.zeros(1, 1, 20, 20),
            torch.empty(1, 1, 20, 20),
            tile=(8, 16),
            overlap=overlap,
            scale=(1, 1),
        )
    assert str(caught.value) == f"overlap: expected 0 to 7 for tiles of 8, got {overlap}: make it smaller"


def test_a_real_decoder_changes_when_tiles_are_smaller_than_the_image(small_vae: VAE) -> None:
    z = torch.randn(2, 4, 12, 17, generator=torch.Generator().manual_seed(1))
    whole = small_vae.decode(z, "untiled")
    tiled = small_vae.decode(z, "blend", tile_size=64, overlap=16)
    assert tiled.shape == whole.shape == (2, 96, 136, 3)
    assert float((tiled - whole).abs().max()) > 1e-3  # its statistics differ from tile to tile: approximate
    assert float((tiled - whole).abs().mean()) < 0.1  # and still the same picture
    assert float(tiled.min()) >= 0
    assert float(tiled.max()) <= 1


def test_a_real_encoder_changes_when_tiles_are_smaller_than_the_image(small_vae: VAE) -> None:
    x = torch.rand(1, 100, 140, 3, generator=torch.Generator().manual_seed(1))
    whole = small_vae.encode(x, "untiled")
    tiled = small_vae.encode(x, "blend", tile_size=64, overlap=16)
    assert tiled.shape == whole.shape == (1, 4, 12, 17)
    assert float((tiled - whole).abs().max()) > 1e-3
    assert float((tiled - whole).abs().mean()) < 0.1


@pytest.mark.parametrize("tile_size", [None, 96, 512])
def test_one_tile_is_the_whole_image(small_vae: VAE, tile_size: int | None) -> None:
    z = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    # The same operations on the same numbers; the ramps are exactly 1.
    torch.testing.assert_close(
        small_vae.decode(z, "blend", tile_size=tile_size), small_vae.decode(z, "untiled"), rtol=0, atol=1e-6
    )
    x = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        small_vae.encode(x, "blend", tile_size=tile_size), small_vae.encode(x, "untiled"), rtol=1e-6, atol=1e-6
    )


def test_the_tiles_of_a_run_are_as_asked(small_vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels become cells, an overlap beyond a quarter is a quarter, and both directions agree."""
    seen: list[tuple[int, ...]] = []
    decode, encode = small_vae._decode_raw, small_vae._encode_raw
    monkeypatch.setattr(small_vae, "_decode_raw", lambda z: [seen.append(tuple(z.shape)), decode(z)][1])
    monkeypatch.setattr(small_vae, "_encode_raw", lambda x: [seen.append(tuple(x.shape)), encode(x)][1])
    small_vae.decode(torch.zeros(1, 4, 14, 8), "blend", tile_size=71, overlap=1000)
    assert seen == [(1, 4, 8, 8)] * 2  # 71 pixels are 8 cells, 2 of them shared: 8 + 6 = 14 rows
    seen.clear()
    small_vae.encode(torch.zeros(1, 112, 64, 3), "blend", tile_size=71, overlap=1000)
    assert seen == [(1, 3, 64, 64)] * 2
    seen.clear()
    small_vae.decode_tiled(torch.zeros(1, 4, 14, 8), tile_x=16, tile_y=8, overlap=2, method="blend")
    assert seen == [(1, 4, 8, 8)] * 2
    seen.clear()
    small_vae.encode_tiled(torch.zeros(1, 112, 64, 3), tile_x=64, tile_y=128, overlap=16, method="blend")
    assert seen == [(1, 3, 64, 64)] * 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tile_size": 7}, "tile_size: expected at least 8 pixels, got 7: make it larger"),
        ({"tile_size": 0}, "tile_size: expected at least 1, got 0: make it larger"),
        ({"overlap": -1}, "overlap: expected at least 0, got -1: make it larger"),
    ],
)
def test_impossible_tiles_are_refused_in_one_line(small_vae: VAE, options: dict[str, int], text: str) -> None:
    for run in (
        lambda: small_vae.decode(torch.zeros(1, 4, 8, 8), "blend", **options),
        lambda: small_vae.encode(torch.zeros(1, 64, 64, 3), "blend", **options),
    ):
        with pytest.raises(ValueError, match="expected at least") as caught:
            run()
        assert str(caught.value) == text
