"""The loss of an autoencoder: likeness, KL and a discriminator's opinion; and the seed's default loss.

Source: `LPIPSWithDiscriminator` of CompVis latent-diffusion (MIT), re-implemented; here the reduction is a choice, the
log-variance is learned when asked for, and the discriminator waits for a number of batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..families.arguments import LOSS, RATE, require_kinds
from ..families.ldm.distribution import DiagonalGaussianDistribution
from .config import one_of, require
from .discriminator import DISCRIMINATOR_LOSSES, NORMS, PatchDiscriminator, adaptive_weight
from .perceptual import TERMS, load_lpips

Log = dict[str, Tensor]
Average = Callable[[Tensor], Tensor]
REDUCTIONS = ("mean", "sum")


class AutoencoderLoss(nn.Module):
    """Weighted likeness terms / exp(logvar) + logvar + kl_weight * KL, and a discriminator from batch `disc_start` on.

    Args:    terms: name in `perceptual.TERMS` -> weight.
             reduction: "mean", each term a mean over values and the KL one over latent elements, or "sum", both summed
             over an image and averaged over the batch as in latent-diffusion. The weights mean different things.
             disc_weight: times the adaptive weight; 0 for no discriminator.
    """

    def __init__(
        self,
        terms: Mapping[str, float] | None = None,
        kl_weight: float = 1e-6,
        reduction: str = "mean",
        logvar_init: float = 0.0,
        learn_logvar: bool = False,
        disc_weight: float = 0.0,
        disc_start: int = 0,
        disc_loss: str = "hinge",
        disc_factor: float = 1.0,
        disc_width: int = 64,
        disc_layers: int = 3,
        disc_norm: str = "group",
        in_channels: int = 3,
    ) -> None:
        require_kinds(type(self).__name__, locals(), LOSS)
        super().__init__()
        self.terms = dict(terms or {"l1": 1.0, "gradient": 1.0, "structure": 0.5})
        require_kinds(f"{type(self).__name__}: terms", self.terms, dict.fromkeys(self.terms, RATE))
        problems = [problem for name in self.terms for problem in one_of("loss.terms", name, TERMS)]
        if terms is not None and not terms:
            problems.append("loss.terms: expected at least one term, got none: add one, or leave terms out")
        problems += one_of("loss.reduction", reduction, REDUCTIONS)
        problems += one_of("loss.disc_loss", disc_loss, DISCRIMINATOR_LOSSES)
        require(problems + one_of("loss.disc_norm", disc_norm, NORMS))
        if "lpips" in self.terms:
            load_lpips()  # here, and not after an hour
        self.kl_weight, self.reduction = kl_weight, reduction
        self.logvar = nn.Parameter(torch.tensor(float(logvar_init)), requires_grad=learn_logvar)
        self.disc_weight, self.disc_start, self.disc_factor = disc_weight, disc_start, disc_factor
        self.disc_loss = DISCRIMINATOR_LOSSES[disc_loss]
        self.discriminator = (
            PatchDiscriminator(in_channels, disc_width, disc_layers, disc_norm) if disc_weight else None
        )

    def get_trainable_autoencoder_parameters(self) -> Iterator[nn.Parameter]:
        """What the autoencoder's optimiser holds: the log-variance, where it is learned."""
        if self.logvar.requires_grad:
            yield self.logvar

    def likeness(self, x: Tensor, y: Tensor) -> Tensor:
        """The weighted terms of every image, (B,), reduced as the loss is."""
        scale = float(x[0].numel()) if self.reduction == "sum" else 1.0
        rows = [weight * scale * TERMS[name](x, y) for name, weight in self.terms.items()]
        return torch.stack(rows).sum(dim=0)

    def autoencoder(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        posterior: DiagonalGaussianDistribution,
        batch: int,
        last_layer: Tensor | None,
        split: str,
        average: Average | None = None,
    ) -> tuple[Tensor, Log]:
        """(what the autoencoder minimises in batch number `batch`, values to log under `split`/...).

        `last_layer` is for the adaptive weight, `average` is that of a tensor over all processes.
        """
        _require_one_shape(inputs, reconstructions)
        rec = self.likeness(inputs, reconstructions)
        values = float(inputs[0].numel()) if self.reduction == "sum" else 1.0
        nll = (rec / self.logvar.exp() + values * self.logvar).mean()
        kl = (posterior.kl() / (posterior.mean[0].numel() if self.reduction == "mean" else 1)).mean()
        total = nll + self.kl_weight * kl
        log = {"rec_loss": rec.mean(), "kl_loss": kl, "nll_loss": nll, "logvar": self.logvar}
        if self.discriminator is not None and batch >= self.disc_start:
            opinion = -self.discriminator(reconstructions).mean()
            if torch.is_grad_enabled() and last_layer is not None:
                weight = self.disc_weight * adaptive_weight(nll, opinion, last_layer, average)
            else:
                weight = opinion.new_tensor(self.disc_weight)
            total = total + weight * self.disc_factor * opinion
            log |= {"g_loss": opinion, "d_weight": weight}
        return _logged(total, log | {"total_loss": total}, split)

    def judge(self, inputs: Tensor, reconstructions: Tensor, split: str) -> tuple[Tensor, Log]:
        """(what the discriminator minimises, values to log); no gradient reaches the autoencoder."""
        assert self.discriminator is not None
        real, fake = self.discriminator(inputs.detach()), self.discriminator(reconstructions.detach())
        loss = self.disc_factor * self.disc_loss(real, fake)
        return _logged(loss, {"disc_loss": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}, split)


def _logged(loss: Tensor, log: Log, split: str) -> tuple[Tensor, Log]:
    return loss, {f"{split}/{name}": value.detach() for name, value in log.items()}


def _require_one_shape(inputs: Tensor, reconstructions: Tensor) -> None:
    """InputError for images that cannot be compared one by one, also where one would be spread over several."""
    if inputs.shape != reconstructions.shape:
        raise InputError(
            f"loss: expected reconstructions of the inputs' shape, got {tuple(reconstructions.shape)} for "
            f"{tuple(inputs.shape)}: crop the images to whole latent cells before they are encoded"
        )


class DefaultLoss(nn.Module):
    """The seed's `default_loss`: mean squared error + kl_weight * KL. Unsafe, and kept for comparison only.

    The error is a mean over values, the KL a sum over the latent: with the seed's weight of 0.5 the KL outweighs
    everything, the posterior collapses onto the prior, and the decoder learns the mean image.
    """

    discriminator: nn.Module | None = None
    disc_start = 0

    def __init__(self, kl_weight: float = 0.5) -> None:
        require_kinds(type(self).__name__, locals(), LOSS)
        super().__init__()
        self.kl_weight = kl_weight

    def autoencoder(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        posterior: DiagonalGaussianDistribution,
        batch: int,
        last_layer: Tensor | None,
        split: str,
        average: Average | None = None,
    ) -> tuple[Tensor, Log]:
        """(rec + kl_weight * kl, {split/rec_loss, split/kl_loss, split/total_loss})."""
        _require_one_shape(inputs, reconstructions)
        rec = (reconstructions - inputs).square().mean()
        kl = posterior.kl().mean()
        total = rec + self.kl_weight * kl
        return _logged(total, {"rec_loss": rec, "kl_loss": kl, "total_loss": total}, split)
