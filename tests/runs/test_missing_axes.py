"""Images and latents without their batch axis, with nothing in the batch, or of whole numbers: told as just that."""

from __future__ import annotations

import re

import pytest
import torch
from exact_vae import VAE, InputError

pytestmark = pytest.mark.usefixtures("one_thread")

PIXELS: list[tuple[tuple[int, ...], str]] = [
    ((16, 24, 3), "the batch axis is missing, add it by pixels[None]"),
    ((16, 24, 4), "the batch axis is missing, add it by pixels[None]"),
    ((3, 16, 24), "the batch axis is missing and the channels are first, pass pixels.movedim(0, -1)[None]"),
    ((16, 24, 1), "convert the image to 3 channels and add the batch axis, by pixels[None]"),
    ((16, 24), "axes are missing, add them"),
    ((0, 16, 24, 3), "pass at least one, the batch is empty"),
    ((0, 16, 24, 1), "pass at least one, the batch is empty"),
    ((0, 3, 16, 24), "pass at least one, the batch is empty"),
    ((1, 16, 24, 1), "convert the image to 3 channels"),
]
LATENTS: list[tuple[tuple[int, ...], str]] = [
    ((4, 2, 3), "the batch axis is missing, add it by samples[None]"),
    ((16, 2, 3), "the batch axis is missing, add it by samples[None], and use the VAE that belongs to the model"),
    ((2, 3), "axes are missing, add them"),
    ((0, 4, 2, 3), "pass at least one, the batch is empty"),
    ((0, 16, 2, 3), "pass at least one, the batch is empty"),
    ((1, 4, 0, 3), "pass one of at least one cell"),
    ((1, 16, 2, 4), "use the VAE that belongs to the model"),  # four wide, not of four channels
]


@pytest.mark.parametrize(("shape", "way"), PIXELS)
def test_pixels(small_vae: VAE, shape: tuple[int, ...], way: str) -> None:
    line = f"pixels: expected (batch, height, width, 3) in 0..1, got {shape}: {way}"
    for not_video in (None, False):
        with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
            small_vae.encode(torch.rand(shape), not_video=not_video)


@pytest.mark.parametrize(("shape", "way"), LATENTS)
def test_latents(small_vae: VAE, shape: tuple[int, ...], way: str) -> None:
    with pytest.raises(InputError, match=f"^latents: expected [^\n]*, got [^\n]*: {re.escape(way)}$"):
        small_vae.decode(torch.randn(shape))


def test_what_the_lines_say_works(small_vae: VAE) -> None:
    x, z = torch.rand(1, 16, 24, 3), torch.randn(1, 4, 2, 3)
    right = small_vae.encode(x)
    assert small_vae.encode(x[0][None]).equal(right)
    assert small_vae.encode(x[0].movedim(-1, 0).movedim(0, -1)[None]).equal(right)
    assert small_vae.decode(z[0][None]).equal(small_vae.decode(z))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8, torch.bool])
def test_latents_of_whole_numbers(small_vae: VAE, dtype: torch.dtype) -> None:
    line = f"latents: expected floats, got {dtype}: pass what encode returned; whole numbers are no latents"
    for z in (torch.ones(1, 4, 2, 3, dtype=dtype), torch.ones(1, 4, 1, 2, 3, dtype=dtype)):
        for method in ("exact", "untiled", "blend"):
            with pytest.raises(InputError, match=f"^{line}$"):
                small_vae.decode(z, method)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float8_e4m3fn])
def test_latents_of_every_kind_of_floats_are_taken(small_vae: VAE, dtype: torch.dtype) -> None:
    z = torch.randn(1, 4, 2, 3).to(dtype)
    assert small_vae.decode(z).equal(small_vae.decode(z.float()))
