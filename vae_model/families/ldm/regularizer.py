"""What stands between encoder and latent: the KL regulariser of the image autoencoders.

Source: Stability-AI generative-models `autoencoding/regularizers` (MIT), re-implemented.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ...errors import InputError
from .distribution import DiagonalGaussianDistribution


class DiagonalGaussianRegularizer(nn.Module):
    """Moments (B, 2C, h, w) -> (z, {"kl_loss": scalar}); z is a draw when `sample`, else the mean.

    The loss is the KL to the standard normal, summed over C, h, w and averaged over the batch (`reduction` "sum"),
    or also averaged over C, h, w (`reduction` "mean"); it is float32 of 16-bit moments. z keeps their dtype.
    """

    def __init__(self, sample: bool = True, reduction: str = "sum") -> None:
        super().__init__()
        if reduction not in ("sum", "mean"):
            raise InputError(f"reduction: expected 'sum' or 'mean', got {reduction!r}: choose one of these")
        self.sample, self.reduction = sample, reduction

    def get_trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Nothing: the regulariser has no parameters."""
        yield from ()

    def forward(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        posterior = DiagonalGaussianDistribution(z)
        kl = posterior.kl().mean()
        if self.reduction == "mean":
            kl = kl / posterior.mean[0].numel()
        return posterior.sample() if self.sample else posterior.mode(), {"kl_loss": kl}


class IdentityRegularizer(nn.Module):
    """z passes unchanged: for encoders without a log-variance (`double_z=False`)."""

    def get_trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Nothing: the regulariser has no parameters."""
        yield from ()

    def forward(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return z, {}
