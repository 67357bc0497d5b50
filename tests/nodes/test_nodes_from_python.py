"""Nodes called from Python with something slightly wrong: one line that says what was meant, by the input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import NODE_CLASS_MAPPINGS, VAE, load_vae, save
from exact_vae.vae_model.errors import InputError

LATENT = torch.zeros(1, 16, 4, 4)
PIXELS = torch.zeros(1, 32, 32, 3)
MASK = torch.zeros(1, 32, 32)
WRONG: dict[str, tuple[str, tuple[Any, ...], str]] = {
    "tile size as text": (
        "DecodeTiled",
        ({"samples": LATENT}, VAE, "64"),
        "tile_size: expected a whole number, got '64'",
    ),
    "no tile size": ("DecodeTiled", ({"samples": LATENT}, VAE, 0), "tile_size: expected at least 1, got 0"),
    "overlap as text": ("EncodeTiled", (PIXELS, VAE, 64, "8"), "overlap: expected a whole number, got '8'"),
    "frames below 0": (
        "DecodeTiled",
        ({"samples": LATENT}, VAE, 64, 8, -1),
        "temporal_size: expected at least 0, got -1",
    ),
    "width as text": ("Plan", (VAE, "64", 64), "width: expected a whole number, got '64'"),
    "no height": ("Plan", (VAE, 64, 0), "height: expected at least 1, got 0"),
    "growth as text": ("EncodeForInpaint", (PIXELS, VAE, MASK, "6"), "grow_mask_by: expected a whole number, got '6'"),
    "channels second": (
        *("Encode", (PIXELS.movedim(-1, 1), VAE)),
        "pixels: expected images (batch, height, width, channels), got (1, 3, 32, 32): put the channels last, by "
        "movedim(1, -1)",
    ),
    "a latent alone": (
        *("Decode", (LATENT, VAE)),
        'samples: expected a latent, got a tensor (1, 16, 4, 4) alone: in Python pass {"samples": tensor}',
    ),
    "another key": (
        *("Decode", ({"sample": LATENT}, VAE)),
        "samples: expected a latent, got a dictionary with sample: connect what samples or encodes",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_inputs_are_told_by_their_names(what: str, small_vae: VAE) -> None:
    name, given, text = WRONG[what]
    node = NODE_CLASS_MAPPINGS[f"ExactVAE{name}"]()
    arguments = [small_vae if one is VAE else one for one in given]
    with pytest.raises(InputError) as caught:
        getattr(node, node.FUNCTION)(*arguments)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_a_strip_lower_than_a_cell_is_a_cell(small_vae: VAE) -> None:
    decode = NODE_CLASS_MAPPINGS["ExactVAEDecodeTiled"]().decode
    z = {"samples": torch.randn(1, small_vae.latent_channels, 4, 4)}
    low, usual = (decode(z, small_vae, size, 8)["result"][0] for size in (1, 64))
    torch.testing.assert_close(low, usual, rtol=0, atol=2e-5)


@pytest.mark.parametrize("joint", [",", "+"])
def test_two_paths_in_one_text_are_told_the_way(tmp_path: Path, small_vae: VAE, joint: str) -> None:
    for half in ("a", "b"):
        save(small_vae, tmp_path / f"{half}.safetensors")
    with pytest.raises(InputError, match=r"got 2 joined by '[,+]': pass \('a\.safetensors', 'b\.safetensors'\)$"):
        load_vae(f"{tmp_path}/a.safetensors{joint}{tmp_path}/b.safetensors")
