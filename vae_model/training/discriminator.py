"""The PatchGAN discriminator, its losses, and the weight that balances it against the reconstruction.

Source: pix2pix's NLayerDiscriminator as used by CompVis taming-transformers and latent-diffusion (MIT), re-implemented.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError
from ..group_norm import GroupNorm

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "group": lambda channels: GroupNorm(next(n for n in (16, 8, 4, 2, 1) if channels % n == 0), channels),
    "none": nn.Identity,
}
"""`batch` is the original; it depends on what else is in the batch, and fails on a 1 x 1 result of a single image."""


class PatchDiscriminator(nn.Sequential):
    """4x4 convolutions, `layers` of them with stride 2: (B, C, H, W) -> logits of overlapping patches (B, 1, h, w).

    256 pixels give 30 x 30 logits with three layers. Weights start normal, with a standard deviation of 0.02.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, layers: int = 3, norm: str = "group") -> None:
        if norm not in NORMS:
            raise ValueError(f"norm: expected one of {', '.join(NORMS)}, got {norm!r}: choose one of these")
        parts: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        before = width
        for number in range(1, layers + 1):
            after = width * min(2**number, 8)
            stride = 2 if number < layers else 1
            convolution = nn.Conv2d(before, after, 4, stride=stride, padding=1, bias=norm != "batch")
            parts += [convolution, NORMS[norm](after), nn.LeakyReLU(0.2)]
            before = after
        super().__init__(*parts, nn.Conv2d(before, 1, 4, stride=1, padding=1))
        self.least_side = 3 * 2**layers if layers else 4
        """Pixels from which there is a logit."""
        self.apply(_start)

    def forward(self, input: Tensor) -> Tensor:
        """Logits (B, 1, h, w) of images (B, C, H, W); InputError for images below `least_side`."""
        height, width = input.shape[-2:]
        if min(height, width) < self.least_side:
            raise InputError(
                f"discriminator: expected images of at least {self.least_side} x {self.least_side} pixels, "
                f"got {height} x {width}: train on larger ones, or lower disc_layers"
            )
        return super().forward(input)


def _start(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(layer.weight, 1.0, 0.02)
        nn.init.zeros_(layer.bias)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """(mean relu(1 - real) + mean relu(1 + fake)) / 2: 1 where all logits are 0."""
    return 0.5 * (functional.relu(1.0 - real).mean() + functional.relu(1.0 + fake).mean())


def vanilla(real: Tensor, fake: Tensor) -> Tensor:
    """(mean softplus(-real) + mean softplus(fake)) / 2: ln 2 where all logits are 0."""
    return 0.5 * (functional.softplus(-real).mean() + functional.softplus(fake).mean())


DISCRIMINATOR_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"hinge": hinge, "vanilla": vanilla}


def adaptive_weight(
    nll: Tensor, generator_loss: Tensor, last_layer: Tensor, average: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """How much the discriminator's opinion counts: |d nll / d w| / (|d g / d w| + 1e-4), at most 1e4, detached.

    Args:    last_layer: w, the weight of the decoder's last convolution; 1 is returned where it is not trained.
             average: mean of a tensor over all processes, so that they agree and see what one process would.
    """
    if not last_layer.requires_grad:
        return nll.new_ones(())
    ours = torch.autograd.grad(nll, last_layer, retain_graph=True)[0]
    theirs = torch.autograd.grad(generator_loss, last_layer, retain_graph=True)[0]
    if average is not None:
        ours, theirs = average(ours), average(theirs)
    return (ours.norm() / (theirs.norm() + 1e-4)).clamp(0.0, 1e4).detach()
