"""Start values of an autoencoder that is trained from nothing, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..families.ldm.autoencoder import AutoencoderKL
from ..families.ldm.layers import AttnBlock, ResnetBlock
from .perceptual import OPPONENT

START_LOGVAR = -6.0


def _skip(model: AutoencoderKL) -> None:
    """Values that let a short training get somewhere.

    Residual branches start at zero, so that the network starts as its skip connections; the posterior starts nearly
    noiseless, or weak signals (colour, fine detail) drown in it; conv_in starts four times as sensitive to colour
    differences as to brightness, because photographs hold about that much less of them.
    """
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, ResnetBlock):
                layer.conv2.weight.zero_()
            elif isinstance(layer, AttnBlock):
                layer.proj_out.weight.zero_()
        last: Any = model.quant_conv if hasattr(model, "quant_conv") else model.encoder.conv_out
        channels = last.out_channels // 2
        last.weight[channels:].zero_()
        last.bias[channels:] = START_LOGVAR
        first: Any = model.encoder.conv_in
        if first.in_channels == 3:
            gain = OPPONENT.T @ torch.diag(torch.tensor([1.0, 4.0, 4.0])) @ OPPONENT
            first.weight.copy_(torch.einsum("ocij,cd->odij", first.weight, gain))


STARTS: dict[str, Callable[[AutoencoderKL], None]] = {"default": lambda model: None, "skip": _skip}
"""What a configuration may name; the default are PyTorch's own values."""
