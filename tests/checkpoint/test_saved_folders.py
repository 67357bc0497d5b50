"""Folders for diffusers: every setting that no shape tells stands in config.json, and diffusers computes the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae.tests.checkpoint.test_saved_values import BLOCKS, DD, WIDTHS, first, kl
from exact_vae.vae_model.checkpoint.convert import convert_vae
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.checkpoint.save import save, to_layout
from exact_vae.vae_model.errors import InputError
from exact_vae.vae_model.families.video.model import VideoDecoder

pytestmark = pytest.mark.usefixtures("no_gradients")

SETTINGS: dict[str, Any] = {
    "act_fn": "silu", "upsample_fn": "bilinear", "latent_magnitude": 5, "latent_shift": 0.25,
}  # fmt: skip


def test_diffusers_folders_of_tiny_models_with_every_setting(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderTiny(**WIDTHS, **BLOCKS, **SETTINGS).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours: Any = load_model(tmp_path / "theirs").model
    written, _ = convert_vae([str(tmp_path / "theirs")], tmp_path / "ours", "diffusers")
    fields = json.loads(written[1].read_text())
    kept = {"scaling_factor": 1.0, "shift_factor": 0.0, "force_upcast": False, "upsampling_scaling_factor": 2}
    assert {name: fields[name] for name in SETTINGS | kept} == SETTINGS | kept
    again = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False).eval()
    x, z = torch.rand(1, 3, 16, 16) * 2 - 1, torch.randn(1, 4, 4, 4)
    for model in (ours, again):
        # One program; the bound is float32's rounding of values of about 1.
        torch.testing.assert_close(first(model.decode(z)), theirs.decode(z).sample, rtol=0, atol=1e-6)
        torch.testing.assert_close(first(model.encode(x)), theirs.encode(x).latents, rtol=0, atol=1e-6)
        torch.testing.assert_close(model.scale_latents(z), theirs.scale_latents(z), rtol=0, atol=1e-7)


def test_diffusers_folders_of_temporal_decoders(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    dd = DD | {"ch": 32, "ch_mult": (1, 1), "num_res_blocks": 2, "num_groups": 32}
    options = {"time_mode": "conv-only", "video_kernel_size": (3, 1, 1), "alpha": 0.3}
    model = kl(dd, options, decoder_target="VideoDecoder", use_post_quant_conv=False, use_quant_conv=False)
    assert isinstance(model.decoder, VideoDecoder)
    for parameter in model.decoder.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)  # a fresh stack over time does nothing
    save(model, tmp_path / "m.safetensors")
    convert_vae([str(tmp_path / "m.safetensors")], tmp_path / "folder", "diffusers")
    kind = diffusers.AutoencoderKLTemporalDecoder
    theirs = kind.from_pretrained(tmp_path / "folder", low_cpu_mem_usage=False).eval()
    z, x = torch.randn(3, 4, 4, 4), torch.rand(1, 3, 16, 16) * 2 - 1
    wanted = theirs.decode(z, num_frames=3).sample
    torch.testing.assert_close(model.decode(z, timesteps=3), wanted, rtol=0, atol=1e-5)  # float32's rounding
    torch.testing.assert_close(model.encode(x), theirs.encode(x).latent_dist.mode(), rtol=0, atol=1e-5)
    save(kl(dd, options | {"time_mode": "all"}, decoder_target="VideoDecoder"), tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="expected the decoder of Stable Video Diffusion"):
        convert_vae([str(tmp_path / "m.safetensors")], tmp_path / "other", "diffusers")
    assert to_layout(model, "diffusers")["quant_conv.bias"].abs().sum() == 0


def test_half_a_temporal_autoencoder_in_diffusers_names(tmp_path: Path) -> None:
    model = kl(
        None,
        {"video_kernel_size": (3, 1, 1)},
        decoder_target="VideoDecoder",
        parts=("decoder",),
        use_post_quant_conv=False,
    )
    save(model, tmp_path / "m.safetensors", layout="diffusers")
    z = torch.randn(2, 4, 4, 4)
    assert torch.equal(first(load_model(tmp_path / "m.safetensors").model.decode(z)), model.decode(z))  # pyright: ignore
