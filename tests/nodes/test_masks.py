"""Masks for inpainting against the core's own arithmetic, written down independently: sums of windows, not maxima."""

import pytest
import torch
from exact_vae import NODE_CLASS_MAPPINGS, VAE, InputError
from exact_vae.model_management.masks import grey_out, grow_mask


@pytest.mark.parametrize("size", [0, 1, 2, 3, 6, 7, 64])
def test_a_mask_grows_like_a_convolution_with_ones(size: int) -> None:
    mask = (torch.rand(2, 1, 40, 56, generator=torch.Generator().manual_seed(size)) > 0.99).float()
    found = grow_mask(mask, size)
    expected = mask
    if size > 0:
        pad = -(-(size - 1) // 2)
        kernel = torch.ones(1, 1, size, size)
        expected = torch.nn.functional.conv2d(mask, kernel, padding=pad).clamp(0, 1)[:, :, :40, :56]
    assert torch.equal(found, expected)
    assert found.sum() >= mask.sum() > 0


def test_masked_places_become_grey_and_the_rest_stays() -> None:
    pixels = torch.rand(2, 21, 35, 3)
    mask = torch.zeros(21, 35)
    mask[5:9, 10:20] = 1
    found, placed = grey_out(pixels, mask, 8)
    assert (found.shape, placed.shape) == ((2, 16, 32, 3), (1, 1, 16, 32))
    cropped = pixels[:, 2:18, 1:33]
    inside = placed[0, 0] > 0.5
    assert inside.sum() == 4 * 10
    assert torch.all(found[:, inside] == 0.5)
    torch.testing.assert_close(found[:, ~inside], cropped[:, ~inside])


def test_a_mask_of_another_size_is_stretched() -> None:
    _, placed = grey_out(torch.zeros(1, 64, 64, 3), torch.eye(2).repeat_interleave(4, 0).repeat_interleave(4, 1), 8)
    assert placed.shape == (1, 1, 64, 64)
    assert placed[0, 0, 10, 10] == 1
    assert placed[0, 0, 10, 50] == 0


def test_the_node_encodes_the_greyed_image(small_vae: VAE) -> None:
    pixels, mask = torch.rand(1, 40, 48, 4), torch.zeros(1, 40, 48)
    mask[:, 8:24, 8:24] = 1
    output = NODE_CLASS_MAPPINGS["ExactVAEEncodeForInpaint"]().encode(pixels, small_vae, mask, 6)
    (latent,) = output["result"]
    greyed = pixels[..., :3].clone()
    greyed[:, 8:24, 8:24] = 0.5
    torch.testing.assert_close(latent["samples"], small_vae.encode(greyed))
    assert latent["noise_mask"].shape == (1, 1, 40, 48)
    assert latent["noise_mask"].sum() == 21 * 21
    assert output["ui"]["exact_vae"][0]["what"] == "encode"


def test_an_image_smaller_than_a_cell_is_told_by_its_own_size(small_vae: VAE) -> None:
    node = NODE_CLASS_MAPPINGS["ExactVAEEncodeForInpaint"]()
    with pytest.raises(InputError, match="one latent cell, got 7 x 5: enlarge the image"):
        node.encode(torch.rand(1, 5, 7, 3), small_vae, torch.zeros(1, 5, 7))
