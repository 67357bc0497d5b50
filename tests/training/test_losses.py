"""Losses, discriminator and its weight, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from exact_vae.vae_model.families.ldm.distribution import DiagonalGaussianDistribution
from exact_vae.vae_model.training.config import ConfigError, OptimizerSection
from exact_vae.vae_model.training.discriminator import PatchDiscriminator, adaptive_weight, hinge, vanilla
from exact_vae.vae_model.training.losses import LOSSES, AutoencoderLoss, DefaultLoss, make_loss
from exact_vae.vae_model.training.perceptual import TERMS
from torch import Tensor

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
"""Float32 sums of some hundred values."""


def posterior(mean: float, logvar: float) -> DiagonalGaussianDistribution:
    """Of two images with 2 x 3 x 3 latents."""
    return DiagonalGaussianDistribution(torch.cat([torch.full((2, 2, 3, 3), v) for v in (mean, logvar)], dim=1))


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2))  # pyright: ignore


def test_likeness_and_kl_by_hand() -> None:
    x, y = images()
    kl = 0.5 * (0.25 + math.exp(-1.0) - 1 + 1.0)  # of every latent element
    total, log = AutoencoderLoss({"l1": 1.0, "mse": 2.0}, kl_weight=0.1).autoencoder(
        x, y, posterior(0.5, -1.0), 0, None, "train"
    )
    rec = (x - y).abs().mean() + 2 * (x - y).square().mean()
    torch.testing.assert_close(total, rec + 0.1 * kl, **CLOSE)
    torch.testing.assert_close(log["train/kl_loss"], torch.tensor(kl), **CLOSE)
    summed, _ = AutoencoderLoss({"l1": 1.0}, kl_weight=0.1, reduction="sum").autoencoder(
        x, y, posterior(0.5, -1.0), 0, None, "train"
    )
    torch.testing.assert_close(summed, (x - y).abs().sum() / 2 + 0.1 * kl * 18, **CLOSE)


def test_learned_log_variance() -> None:
    x, y = images()
    loss = AutoencoderLoss({"l1": 1.0}, kl_weight=0.0, logvar_init=0.5, learn_logvar=True)
    total, _ = loss.autoencoder(x, y, posterior(0.0, 0.0), 0, None, "train")
    rec = float((x - y).abs().mean())
    assert float(total.detach()) == pytest.approx(rec / math.exp(0.5) + 0.5, rel=1e-5)
    (parameter,) = loss.get_trainable_autoencoder_parameters()
    (gradient,) = torch.autograd.grad(total, parameter)
    assert float(gradient) == pytest.approx(1 - rec / math.exp(0.5), rel=1e-4)
    assert not list(AutoencoderLoss().get_trainable_autoencoder_parameters())


@pytest.mark.parametrize("name", [name for name in TERMS if name != "lpips"])
def test_every_term_is_zero_for_equal_images_only(name: str) -> None:
    x, y = (torch.nn.functional.interpolate(image, size=(64, 64)) for image in images())
    torch.testing.assert_close(TERMS[name](x, x), torch.zeros(2), rtol=0, atol=2e-3)  # Charbonnier keeps its epsilon
    assert bool((TERMS[name](x, y) > 0.05).all())


def test_default_loss_is_the_seeds() -> None:
    x, y = images()
    total, log = DefaultLoss().autoencoder(x, y, posterior(0.5, -1.0), 0, None, "val")
    kl = 18 * 0.5 * (0.25 + math.exp(-1.0))
    assert sorted(log) == ["val/kl_loss", "val/rec_loss", "val/total_loss"]
    torch.testing.assert_close(total, (x - y).square().mean() + 0.5 * kl, **CLOSE)


def test_discriminator_and_its_losses() -> None:
    net = PatchDiscriminator(norm="batch")
    assert sum(parameter.numel() for parameter in net.parameters()) == 2_765_633
    assert PatchDiscriminator(width=8)(torch.zeros(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    zeros = torch.zeros(4)
    assert float(hinge(zeros, zeros)) == 1.0
    assert float(vanilla(zeros, zeros)) == pytest.approx(math.log(2), rel=1e-6)
    assert float(hinge(torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0]))) == pytest.approx(0.5 * (0.25 + 0.5))


def test_adaptive_weight_by_hand() -> None:
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    nll, opinion = (w * torch.tensor([6.0, 8.0])).sum(), (w * torch.tensor([0.3, 0.4])).sum()
    assert float(adaptive_weight(nll, opinion, w)) == pytest.approx(10 / (0.5 + 1e-4), rel=1e-6)
    huge = adaptive_weight(1e9 * nll, opinion, w)
    assert float(huge) == 1e4
    assert not huge.requires_grad
    frozen = torch.ones(2)
    assert float(adaptive_weight(nll, opinion, frozen)) == 1.0


def test_the_discriminator_waits_for_its_batch() -> None:
    x, y = images()
    y = y.requires_grad_()
    loss = AutoencoderLoss({"l1": 1.0}, disc_weight=0.5, disc_start=3, disc_width=4, disc_layers=1)
    _, before = loss.autoencoder(x, y, posterior(0.0, 0.0), 2, None, "train")
    assert "train/g_loss" not in before
    total, after = loss.autoencoder(x, y, posterior(0.0, 0.0), 3, None, "train")
    assert float(after["train/d_weight"]) == 0.5
    expected = after["train/nll_loss"] + 0.5 * after["train/g_loss"]
    torch.testing.assert_close(total.detach(), expected, **CLOSE)
    judged, _ = loss.judge(x, y, "train")
    judged.backward()
    assert y.grad is None  # the discriminator's step leaves the autoencoder alone


def test_rates() -> None:
    def share(schedule: str, batch: int, batches: int, warm_up: int, final_share: float) -> float:
        section = OptimizerSection(schedule=schedule, warm_up=warm_up, final_share=final_share)
        return section.rate_share(batch, batches)

    assert share("constant", 7, 10, 0, 0.01) == 1.0
    assert share("cosine", 0, 100, 10, 0.01) == pytest.approx(0.1)
    assert share("cosine", 50, 100, 0, 0.0) == pytest.approx(0.5)
    assert share("linear", 100, 100, 0, 0.25) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"target": "ldm.modules.losses.Mine"}, "lossconfig.target: expected one of " + ", ".join(LOSSES)),
        ({"params": {"kl_wieght": 1}}, "lossconfig.params.kl_wieght: expected one of"),
        ({"params": {"kl_weight": "much"}}, "lossconfig.params.kl_weight: expected a number, got 'much'"),
        ({"params": {"terms": {"psnr": 1}}}, "loss.terms: expected one of"),
        ({"kl_weight": 1}, "lossconfig: expected target and params, got kl_weight"),
    ],
)
def test_mistakes_are_named(config: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_loss(config)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
