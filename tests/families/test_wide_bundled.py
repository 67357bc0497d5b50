"""The wide copy of the bundled VAE, which the examples' pictures are made with, is the bundled VAE."""

from __future__ import annotations

from pathlib import Path

import torch
from exact_vae import load_vae
from exact_vae.tests.families.wide_bundled import write_wide_bundled


def test_it_encodes_and_decodes_as_the_bundled_vae(tmp_path: Path) -> None:
    write_wide_bundled(tmp_path / "wide.safetensors")
    wide = load_vae(tmp_path / "wide.safetensors", dtype="float32", device="cpu")
    small = load_vae("bundled", dtype="float32", device="cpu")
    assert wide.first_stage_model.decoder.conv_in.weight.shape[0] == 512
    pixels = torch.rand(1, 48, 56, 3, generator=torch.Generator().manual_seed(0))
    z = small.encode(pixels)
    # Weights in float32 and sums of four times as many of them: some 1e-6 of values up to 10.
    torch.testing.assert_close(wide.encode(pixels), z, rtol=0, atol=2e-4)
    torch.testing.assert_close(wide.decode(z), small.decode(z), rtol=0, atol=2e-5)
