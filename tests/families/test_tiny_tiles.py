"""Tiles of the tiny autoencoder: where they lie, how they are blended, and that only what must differ does."""

from typing import Any

import pytest
import torch
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny
from exact_vae.vae_model.families.tiny.tiles import ramp, run_in_tiles
from torch import Tensor

SIZES = [(1, 1), (7, 3), (16, 16), (17, 40), (64, 31), (33, 90)]


@pytest.fixture(autouse=True)
def seed(one_thread: None) -> None:
    torch.manual_seed(110)


def enlarge(x: Tensor) -> Tensor:
    return x.repeat_interleave(4, 2).repeat_interleave(4, 3)


def shrink(x: Tensor) -> Tensor:
    return x[..., ::4, ::4]


@pytest.mark.parametrize(("cells", "shared"), [(8, 2), (8, 1), (8, 0), (5, 4), (1, 0), (100, 12)])
@pytest.mark.parametrize("size", SIZES)
def test_a_network_that_only_places_pixels_gives_the_same_in_tiles(
    size: tuple[int, int], cells: int, shared: int
) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    decoded = run_in_tiles(enlarge, x, cells=cells, shared=shared, before=1, after=4)
    torch.testing.assert_close(decoded, enlarge(x), rtol=0, atol=1e-14)  # w * a + (1 - w) * a
    encoded = run_in_tiles(shrink, x, cells=cells, shared=shared, before=4, after=1)
    assert encoded.shape == (2, 3, -(-size[0] // 4), -(-size[1] // 4))
    torch.testing.assert_close(encoded, shrink(x), rtol=0, atol=1e-14)


def test_a_later_tile_comes_in_gradually() -> None:
    assert ramp(6, 3).tolist() == [0, 0.5, 1, 1, 1, 1]
    assert ramp(3, 1).tolist() == [0.5, 1, 1]
    assert ramp(2, 0).tolist() == [1, 1]
    numbers = iter((1.0, 3.0))
    out = run_in_tiles(
        lambda x: torch.full_like(x, next(numbers)), torch.zeros(1, 1, 1, 4), cells=5, shared=3, before=1, after=1
    )
    assert out.flatten().tolist() == [1, 1, 1, 2]


@pytest.mark.parametrize(("cells", "shared"), [(0, 0), (4, 4), (4, -1)])
def test_tiles_that_are_all_overlap_are_refused(cells: int, shared: int) -> None:
    with pytest.raises(ValueError, match=f"more cells than shared ones, got {cells} and {shared}: enlarge them"):
        run_in_tiles(enlarge, torch.zeros(1, 1, 8, 8), cells=cells, shared=shared, before=1, after=4)


def small(**options: Any) -> AutoencoderTiny:
    widths = {"encoder_block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8)}
    blocks = {"num_encoder_blocks": (1, 1, 1, 1), "num_decoder_blocks": (1, 1, 1, 1)}
    model = AutoencoderTiny(**widths | blocks | options).eval()
    model.tile_sample_min_size, model.tile_latent_min_size, model.tile_overlap_factor = 64, 8, 0.25
    model.enable_tiling()
    return model


@pytest.mark.parametrize("size", [(64, 64), (72, 152), (128, 56), (200, 264)])
def test_tiles_equal_diffusers_where_it_has_the_right_channels(size: tuple[int, int]) -> None:
    diffusers = pytest.importorskip("diffusers")
    ours = small()
    not_theirs = ("midblock_gn", "strided_stem", "block_out_channels")
    config = {key: value for key, value in ours.config.items() if key not in not_theirs}
    theirs = diffusers.AutoencoderTiny(**config).eval()
    theirs.load_state_dict(ours.state_dict())
    theirs.tile_sample_min_size, theirs.tile_latent_min_size, theirs.tile_overlap_factor = 64, 8, 0.25
    theirs.enable_tiling()
    x, z = torch.rand(2, 3, *size) * 2 - 1, torch.randn(2, 4, size[0] // 8, size[1] // 8)
    with torch.no_grad():
        for actual, expected in (
            (ours.encode(x).latents, theirs.encode(x).latents),
            (ours.decode(z).sample, theirs.decode(z).sample),
            (ours(x).sample, theirs(x).sample),
        ):
            # The same operations on the same tiles; only the order of sums in a convolution may differ.
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(73, 97), (97, 73), (49, 65), (65, 49), (49, 49)])
def test_sizes_of_tiled_results(size: tuple[int, int]) -> None:
    model = small(decoder_block_out_channels=(2, 2, 2, 2))
    model.tile_latent_min_size, model.tile_overlap_factor = 64, 0.125
    with torch.no_grad():
        assert model.decode(torch.zeros(1, 4, *size)).sample.shape == (1, 3, 8 * size[0], 8 * size[1])


def test_one_tile_is_the_whole() -> None:
    model, x, z = small(), torch.rand(1, 3, 47, 31) * 2 - 1, torch.randn(1, 4, 6, 5)
    with torch.no_grad():
        tiled = model.encode(x).latents, model.decode(z).sample
        model.disable_tiling()
        assert model.encode(x).latents.equal(tiled[0])
        assert model.decode(z).sample.equal(tiled[1])


def test_tiles_pass_gradients_on() -> None:
    model = small().double()
    z = torch.randn(1, 4, 9, 10, dtype=torch.float64, requires_grad=True)
    model.decode(z).sample.square().mean().backward()
    assert z.grad is not None
    assert z.grad.abs().sum((0, 1)).all()
