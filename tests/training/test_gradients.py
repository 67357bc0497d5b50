"""Gradients of both optimizers over accumulated batches, scaled for 16 bits or not: those of float32."""

from __future__ import annotations

import copy
import logging
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae.tests.training.case import TINY
from exact_vae.vae_model.training.config import OptimizerSection
from exact_vae.vae_model.training.kl_module import AutoEncoderKL

lightning: Any = pytest.importorskip("lightning", reason="as above")
MixedPrecision: Any = pytest.importorskip("lightning.pytorch.plugins", reason="as above").MixedPrecision
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Lightning 2.6 itself uses what torch has deprecated, and advises many worker processes.
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*smaller than the logging interval.*"),
]
BATCHES, ACCUMULATE = 6, 2


class Scaled(MixedPrecision):
    """The scaled gradients of 16-mixed around a model in float32, so that nothing but the scale can differ."""

    def autocast_context_manager(self) -> Any:
        return nullcontext()


class Steps(lightning.Callback):
    """The gradients at every step, as the optimizer gets them before they are clipped."""

    def __init__(self, spoiled: bool = False) -> None:
        self.spoiled = spoiled
        self.found: dict[str, list[Tensor]] = {"autoencoder": [], "discriminator": []}
        self.scales: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.scales.append(1.0 if scaler is None else scaler.get_scale())
        if self.spoiled and pl_module.batches_done == 1:  # the autoencoder's gradient overflows in the first step
            weight = pl_module.model.decoder.conv_in.weight
            weight.register_post_accumulate_grad_hook(_overflow_once())

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        ours = {id(parameter) for parameter in pl_module.model.parameters()}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        name = "autoencoder" if id(parameters[0]) in ours else "discriminator"
        self.found[name].append(torch.cat([p.grad.flatten().clone() for p in parameters if p.grad is not None]))


def _overflow_once() -> Any:
    left = [1]

    def overflow(parameter: Tensor) -> None:
        if left:
            left.pop()
            assert parameter.grad is not None
            parameter.grad.mul_(float("inf"))

    return overflow


def steps(*, rate: float = 0.1, spoiled: bool = False, **options: Any) -> Steps:
    """A training of three steps with a discriminator from the start, by plain steps."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    params = copy.deepcopy(TINY["params"]) | {"ema_decay": None}
    params["lossconfig"] = {"params": {"disc_weight": 0.5, "disc_layers": 1, "disc_width": 4}}
    torch.manual_seed(0)
    module = AutoEncoderKL(**params)
    plain = "torch.optim.SGD"
    module.settings = OptimizerSection(
        target=plain, lr=rate, discriminator_target=plain, discriminator_lr=rate, discriminator_params={}
    )
    seen = Steps(spoiled)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, callbacks=[seen],
        enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=ACCUMULATE, **options,
    )  # fmt: skip
    images = torch.rand(2 * BATCHES, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    items = [{"jpg": image, "crop": torch.tensor(number)} for number, image in enumerate(images)]
    trainer.fit(module, DataLoader(items, 2), DataLoader(items[:1], 1))
    assert [len(found) for found in seen.found.values()] == [BATCHES // ACCUMULATE] * 2
    return seen


def scaler(interval: int) -> Any:
    """One that doubles its scale after so many steps."""
    return torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=interval)  # pyright: ignore


def test_a_growing_scale_changes_no_gradient() -> None:
    """Doubled at every step of either optimizer: powers of two, so the same bits as without."""
    plain = steps()
    scaled = steps(plugins=[Scaled("16-mixed", "cpu", scaler(1))])
    assert scaled.scales == [1024, 1024, 4096, 4096, 16384, 16384]
    for name, expected in plain.found.items():
        assert all(float(gradient.norm()) > 1e-3 for gradient in expected)
        for one, other in zip(expected, scaled.found[name], strict=True):
            torch.testing.assert_close(other, one, rtol=0, atol=1e-6 * float(one.abs().max()))


def test_an_overflow_of_the_autoencoder_does_not_change_the_discriminators_gradient() -> None:
    """The autoencoder's step is left out and the scale halved, while the discriminator's first batch waits."""
    plain, scaled = steps(), steps(spoiled=True, plugins=[Scaled("16-mixed", "cpu", scaler(1000))])
    assert scaled.scales == [1024, 1024, 512, 512, 512, 512]
    assert not scaled.found["autoencoder"][0].isfinite().all()
    expected, found = plain.found["discriminator"][0], scaled.found["discriminator"][0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


@pytest.mark.parametrize(("precision", "bound"), [("bf16-mixed", 0.22), ("16-mixed", 0.05)])
def test_16_bits_give_the_gradients_of_float32_but_for_rounding(precision: str, bound: float) -> None:
    """With no step that counts, so that roundings do not add up; counted half or twice would be 0.3 and more."""
    plain = steps(rate=0.0)
    scaled = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler(1))]}
    found = steps(rate=0.0, **({"precision": precision} if precision == "bf16-mixed" else scaled)).found
    for name, expected in plain.found.items():
        for one, other in zip(expected, found[name], strict=True):
            assert float((other - one).norm() / one.norm()) < bound
