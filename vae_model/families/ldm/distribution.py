"""The diagonal Gaussian posterior of a KL autoencoder, and the regularisers between an encoder and its latents.

Source: latent-diffusion `distributions.py` and generative-models `autoencoding/regularizers` (MIT), re-implemented.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..arguments import CALLS, require_kinds, require_moments


class DiagonalGaussianDistribution:
    """Gaussian with diagonal covariance, from moments (B, 2C, ...): mean in the first half, log-variance in the second.

    The log-variance is clamped to [-30, 20]. With `deterministic`, the deviation is zero and `sample` is the mean.
    `mean` and `logvar` keep the dtype of the moments; `std` and `var` of 16-bit moments are float32, and `kl` and `nll`
    are computed and returned in it: a variance reaches 5e8, and near the prior the terms of the KL nearly cancel.
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        require_moments(parameters)
        require_kinds("posterior", {"deterministic": deterministic})
        self.parameters = parameters
        self.mean, logvar = torch.chunk(parameters, 2, dim=1)
        self.logvar = torch.clamp(logvar, -30.0, 20.0)
        self.deterministic = deterministic
        wide = _wide(self.logvar)
        if deterministic:
            self.std = self.var = torch.zeros_like(wide)
        else:
            self.std, self.var = torch.exp(0.5 * wide), torch.exp(wide)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One draw (B, C, ...), in the mean's dtype and on its device; `generator` may live on another device."""
        require_kinds("posterior", {"generator": generator}, CALLS)
        device = generator.device if generator is not None else self.mean.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return (self.mean + self.std * noise.to(self.mean.device)).to(self.mean.dtype)

    def mode(self) -> Tensor:
        """The mean, (B, C, ...)."""
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """KL divergence to `other` (None: the standard normal), in nats, summed over all but the batch: (B,)."""
        if other is not None:
            self._require_like(other.mean if isinstance(other, DiagonalGaussianDistribution) else other, "kl: other")  # pyright: ignore
        dims = tuple(range(1, self.mean.ndim))
        if self.deterministic:
            return self.var.new_zeros(self.mean.shape[0])
        mean, logvar = _wide(self.mean), _wide(self.logvar)
        if other is None:
            return 0.5 * torch.sum(mean**2 + (torch.expm1(logvar) - logvar), dim=dims)
        distance, logratio = (mean - _wide(other.mean)) ** 2 / other.var, logvar - _wide(other.logvar)
        return 0.5 * torch.sum(distance + (torch.expm1(logratio) - logratio), dim=dims)

    def nll(self, sample: Tensor, dims: Sequence[int] | None = None) -> Tensor:
        """Negative log-likelihood of `sample`, in nats, summed over `dims` (None: all but the batch)."""
        self._require_like(sample, "nll: sample")
        if not (dims is None or isinstance(dims, (list, tuple))):
            raise InputError(f"nll: dims: expected a list of axes or None, got {dims!r}: pass such as [1, 2, 3]")
        summed = tuple(range(1, self.mean.ndim)) if dims is None else tuple(dims)
        if self.deterministic:
            return self.var.new_zeros(self.mean.shape[0])
        terms = math.log(2.0 * math.pi) + _wide(self.logvar) + (_wide(sample) - _wide(self.mean)) ** 2 / self.var
        return 0.5 * torch.sum(terms, dim=summed)

    def _require_like(self, x: Any, what: str) -> None:
        """InputError for anything but numbers that can be compared with the mean, one by one or all with one."""
        ours = self.mean.shape
        fits = isinstance(x, Tensor) and x.ndim == len(ours)
        if not fits or any(one != other and 1 not in (one, other) for one, other in zip(x.shape, ours, strict=True)):
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"{what}: expected the mean's shape, {tuple(ours)}, got {found}: pass such")


def _wide(x: Tensor) -> Tensor:
    """Of 16-bit numbers a float32 copy; anything wider as it is."""
    return x.float() if x.dtype.itemsize < 4 else x


class DiagonalGaussianRegularizer(nn.Module):
    """Moments (B, 2C, h, w) -> (z, {"kl_loss": scalar}); z is a draw when `sample`, else the mean.

    The loss is the KL to the standard normal, summed over C, h, w and averaged over the batch (`reduction` "sum"),
    or also averaged over C, h, w (`reduction` "mean"); it is float32 of 16-bit moments. z keeps their dtype.
    """

    def __init__(self, sample: bool = True, reduction: str = "sum") -> None:
        require_kinds(type(self).__name__, locals())
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
