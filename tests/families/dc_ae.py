"""What tests of DC-AE share: diffusers' models with random weights, ours, inputs."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from exact_vae.tests.families.table import ROWS, Row, dc_ae, random_model
from torch import Tensor, nn

ROW = ROWS["Sana"]


@cache
def narrow(dtype: torch.dtype = torch.float32, *, pixels: bool = False, whole: bool = True) -> Any:
    """Of four levels, two of them with attention at two scales."""
    config = dc_ae(16, 8, 16, 32, 32, pixels=pixels, whole=whole, head_dim=8)
    return random_model(Row("dc_ae", config, 16, 8)).to(dtype)


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Noise on slopes, and an outlier: white noise alone hides wrong sums and mistakes at borders."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    x += torch.linspace(-1, 1, shape[-1], dtype=dtype) + torch.linspace(-2, 1, shape[-2], dtype=dtype)[:, None]
    x[0, 0, 0, -1] = 10.0
    return x


KINDS = ("ResBlock", "ResBlock", "EfficientViTBlock", "EfficientViTBlock")
SCALES = ((), (), (5,), (5,))
SMALL: dict[str, Any] = {
    "latent_channels": 8,
    "attention_head_dim": 8,
    **dict.fromkeys(("encoder_block_types", "decoder_block_types"), KINDS),
    **dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (16, 32, 32, 64)),
    **dict.fromkeys(("encoder_qkv_multiscales", "decoder_qkv_multiscales"), SCALES),
    "encoder_layers_per_block": (1, 1, 2, 1),
    "decoder_layers_per_block": (1, 2, 1, 2),
}
STEPS = {"upsample_block_type": "interpolate", "downsample_block_type": "Conv"}
UNSCALED = dict.fromkeys(("encoder_qkv_multiscales", "decoder_qkv_multiscales"), ((),) * 4)
CASES: dict[str, dict[str, Any]] = {
    "as Sana": STEPS,
    "as in-1.0": {
        "encoder_layers_per_block": (0, 1, 2, 1),
        "decoder_layers_per_block": (0, 2, 1, 2),
        "decoder_norm_types": ("batch_norm", "batch_norm", "rms_norm", "rms_norm"),
        "decoder_act_fns": ("relu", "relu", "silu", "silu"),
        **UNSCALED,
    },
    "nothing at full size, strided": {"encoder_layers_per_block": (0, 1, 1, 1), **STEPS},
    "nothing next to the latents": {"encoder_layers_per_block": (1, 1, 2, 0), "decoder_layers_per_block": (1, 1, 1, 0)},
    "attention alone": {
        **dict.fromkeys(("encoder_block_types", "decoder_block_types"), "EfficientViTBlock"),
        **dict.fromkeys(("encoder_qkv_multiscales", "decoder_qkv_multiscales"), ((3,), (), (3, 5, 1), (7, 3))),
    },
    "all else": {
        "decoder_norm_types": "batch_norm",
        "decoder_act_fns": ("mish", "gelu", "relu", "silu"),
        "encoder_out_shortcut": False,
        "decoder_in_shortcut": False,
        "decoder_conv_act_fn": "swish",
        "encoder_block_out_channels": (16, 16, 64, 64),
        "in_channels": 4,
    },
}


def theirs(**options: Any) -> Any:
    diffusers = pytest.importorskip("diffusers")
    if not hasattr(diffusers, "AutoencoderDC"):
        pytest.skip("this diffusers has no AutoencoderDC")
    model = diffusers.AutoencoderDC(**{**SMALL, **options}).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(4)
    for tensor in model.parameters():
        scale = 0.2 if tensor.ndim == 1 else tensor[0].numel() ** -0.5
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)
    for layer in model.modules():
        if getattr(layer, "weight", None) is not None and layer.weight.ndim == 1:  # of a norm
            layer.weight += 1
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.copy_(torch.randn(layer.num_features, generator=generator) * 0.3)
            layer.running_var.copy_(torch.rand(layer.num_features, generator=generator) + 0.5)
            layer.num_batches_tracked += 7
    return model
