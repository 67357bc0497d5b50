"""The diagonal Gaussian and the KL regulariser: closed forms, clamping, draws, gradients.

Rows A01-A04: the regulariser's default, its parameters, its loss, and the distribution it is made of.
"""

import math
from collections.abc import Iterator

import pytest
import torch
from exact_vae.vae_model.families.ldm.distribution import (
    DiagonalGaussianDistribution,
    DiagonalGaussianRegularizer,
    IdentityRegularizer,
)
from torch import Tensor, distributions

# float64 sums of a hundred values around 1, in another order.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """Fixed numbers, and one thread: these tensors are too small to share out."""
    torch.manual_seed(30)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def moments(batch: int = 3, channels: int = 4) -> Tensor:
    return torch.randn(batch, 2 * channels, 5, 2, dtype=torch.float64)


def normal(posterior: DiagonalGaussianDistribution) -> distributions.Normal:
    return distributions.Normal(posterior.mean, posterior.std)


def test_mean_is_the_first_half_and_logvar_the_second() -> None:
    """A04."""
    parameters = moments()
    posterior = DiagonalGaussianDistribution(parameters)
    assert posterior.mean.equal(parameters[:, :4])
    assert posterior.logvar.equal(parameters[:, 4:])
    assert posterior.mode().equal(posterior.mean)
    torch.testing.assert_close(posterior.std, parameters[:, 4:].exp().sqrt(), **CLOSE)
    torch.testing.assert_close(posterior.var, parameters[:, 4:].exp(), **CLOSE)


def test_logvar_is_clamped_and_passes_no_gradient_outside() -> None:
    """A04."""
    logvar = torch.tensor([-1000.0, -30.5, -30.0, 0.0, 20.0, 20.5, 1000.0])
    parameters = torch.cat([torch.zeros(7), logvar]).reshape(1, 14, 1, 1).requires_grad_()
    posterior = DiagonalGaussianDistribution(parameters)
    assert posterior.logvar.flatten().tolist() == [-30, -30, -30, 0, 20, 20, 20]
    assert bool(torch.isfinite(posterior.kl()).all())
    posterior.logvar.sum().backward()
    assert parameters.grad is not None
    assert parameters.grad.flatten()[7:].tolist() == [0, 0, 1, 1, 1, 0, 0]


def test_kl_to_the_standard_normal_is_summed_over_all_but_the_batch() -> None:
    """A04."""
    posterior = DiagonalGaussianDistribution(moments())
    standard = distributions.Normal(torch.zeros_like(posterior.mean), torch.ones_like(posterior.mean))
    expected = distributions.kl_divergence(normal(posterior), standard).sum((1, 2, 3))
    assert posterior.kl().shape == (3,)
    torch.testing.assert_close(posterior.kl(), expected, **CLOSE)
    assert DiagonalGaussianDistribution(torch.zeros(2, 8, 1, 1)).kl().tolist() == [0, 0]


def test_kl_to_another_gaussian() -> None:
    """A04."""
    one, other = DiagonalGaussianDistribution(moments()), DiagonalGaussianDistribution(moments())
    expected = distributions.kl_divergence(normal(one), normal(other)).sum((1, 2, 3))
    torch.testing.assert_close(one.kl(other), expected, **CLOSE)
    torch.testing.assert_close(one.kl(one), torch.zeros(3, dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize("dims", [None, (1,), (2, 3)])
def test_nll_includes_log_two_pi(dims: tuple[int, ...] | None) -> None:
    """A04."""
    posterior = DiagonalGaussianDistribution(moments())
    sample = torch.randn_like(posterior.mean)
    expected = -normal(posterior).log_prob(sample).sum((1, 2, 3) if dims is None else dims)
    torch.testing.assert_close(posterior.nll(sample, dims), expected, **CLOSE)
    at_mean = DiagonalGaussianDistribution(torch.zeros(1, 2, 1, 1, dtype=torch.float64)).nll(torch.zeros(1, 1, 1, 1))
    assert at_mean.item() == pytest.approx(0.5 * math.log(2 * math.pi), rel=1e-15)  # one number, one rounding


def test_deterministic_draws_the_mean_and_its_losses_have_the_batch_shape() -> None:
    """A04."""
    posterior = DiagonalGaussianDistribution(moments(), deterministic=True)
    assert posterior.sample().equal(posterior.mean)
    assert not posterior.std.any()
    assert not posterior.var.any()
    for loss in (posterior.kl(), posterior.nll(posterior.mean)):
        assert loss.equal(torch.zeros(3, dtype=torch.float64))


def test_draws_have_the_mean_and_the_deviation() -> None:
    """A04."""
    parameters = torch.tensor([2.0, -1.0, 0.0, math.log(9.0)]).reshape(1, 4, 1, 1).expand(-1, -1, 400, 400)
    draw = DiagonalGaussianDistribution(parameters).sample(torch.Generator().manual_seed(0))
    # 160000 draws: the mean is good to 3 / 400, the deviation to less; four times that is allowed.
    torch.testing.assert_close(draw.mean((0, 2, 3)), torch.tensor([2.0, -1.0]), rtol=0, atol=0.03)
    torch.testing.assert_close(draw.std((0, 2, 3)), torch.tensor([1.0, 3.0]), rtol=0, atol=0.03)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_draws_keep_the_dtype_and_follow_the_generator(dtype: torch.dtype) -> None:
    """A04."""
    posterior = DiagonalGaussianDistribution(moments().to(dtype))
    first, second = (posterior.sample(torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.dtype == dtype
    assert first.equal(second)
    assert not posterior.sample(torch.Generator().manual_seed(2)).equal(first)
    assert not posterior.sample().equal(posterior.sample())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kl_near_the_prior_is_that_of_the_same_moments_in_float64(dtype: torch.dtype) -> None:
    """The terms nearly cancel there: in the moments' own 16 bits the sum is noise, and can be negative."""
    z = (0.01 * moments(2, 64)).to(dtype)
    true = DiagonalGaussianDistribution(z.double())
    expected = true.kl()
    assert float(expected.min()) > 0
    # float32 terms of about 1e-4 that are differences of numbers of 1e-2: 1e-5 of them.
    got = DiagonalGaussianDistribution(z).kl()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0)
    _, log = DiagonalGaussianRegularizer(sample=False)(z)
    torch.testing.assert_close(log["kl_loss"].double(), expected.mean(), rtol=1e-5, atol=0)
    other = DiagonalGaussianDistribution(z.flip(0))
    got = DiagonalGaussianDistribution(z).kl(other)
    expected = true.kl(DiagonalGaussianDistribution(z.flip(0).double()))
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_variances_that_sixteen_bits_cannot_hold_are_finite(dtype: torch.dtype) -> None:
    z = torch.tensor([0.5, 12.0]).to(dtype).reshape(1, 2, 1, 1)
    posterior, true = DiagonalGaussianDistribution(z), DiagonalGaussianDistribution(z.double())
    for got, expected in (
        (posterior.var, true.var),
        (posterior.std, true.std),
        (posterior.kl(), true.kl()),  # 0.5 (0.25 + e^12 - 1 - 12) = 81371.02
        (posterior.nll(z[:, :1] + 1), true.nll((z[:, :1] + 1).double())),
    ):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=0)  # float32
    assert float(posterior.kl()) == pytest.approx(81371.02, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_draws_are_rounded_once(dtype: torch.dtype) -> None:
    z = moments(2, 8).to(dtype)
    draw = DiagonalGaussianDistribution(z).sample(torch.Generator().manual_seed(5))
    noise = torch.randn(2, 8, 5, 2, generator=torch.Generator().manual_seed(5), dtype=dtype)
    mean, logvar = z.double().chunk(2, dim=1)
    exact = mean + (0.5 * logvar).exp() * noise.double()
    assert draw.equal(exact.to(dtype))


def test_draws_carry_gradients_to_both_moments() -> None:
    """A04."""

    def draw(parameters: Tensor) -> Tensor:
        return DiagonalGaussianDistribution(parameters).sample(torch.Generator().manual_seed(4))

    assert torch.autograd.gradcheck(draw, moments(1, 1).requires_grad_())


def test_regularizer_draws_unless_told() -> None:
    """A01."""
    z = moments()
    assert not DiagonalGaussianRegularizer()(z)[0].equal(DiagonalGaussianRegularizer()(z)[0])
    assert DiagonalGaussianRegularizer(sample=False)(z)[0].equal(z[:, :4])
    assert not list(DiagonalGaussianRegularizer().parameters())


def test_regularizers_have_no_trainable_parameters() -> None:
    """A02."""
    assert list(DiagonalGaussianRegularizer().get_trainable_parameters()) == []
    assert list(IdentityRegularizer().get_trainable_parameters()) == []


def test_kl_loss_is_summed_per_image_and_averaged_over_the_batch() -> None:
    """A03."""
    z = moments()
    total = DiagonalGaussianDistribution(z).kl().sum()
    _, log = DiagonalGaussianRegularizer()(z)
    assert list(log) == ["kl_loss"]
    assert log["kl_loss"].shape == ()
    torch.testing.assert_close(log["kl_loss"], total / 3, **CLOSE)
    _, log = DiagonalGaussianRegularizer(reduction="mean")(z)
    torch.testing.assert_close(log["kl_loss"], total / z[:, :4].numel(), **CLOSE)
    with pytest.raises(ValueError, match="expected 'sum' or 'mean', got 'none'"):
        DiagonalGaussianRegularizer(reduction="none")


def test_kl_loss_passes_gradcheck() -> None:
    """A03."""
    assert torch.autograd.gradcheck(
        lambda z: DiagonalGaussianRegularizer()(z)[1]["kl_loss"], moments().requires_grad_()
    )


def test_identity_regularizer_changes_nothing() -> None:
    z = moments()
    out, log = IdentityRegularizer()(z)
    assert out is z
    assert log == {}
