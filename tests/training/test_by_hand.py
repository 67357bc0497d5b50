"""The module's own methods called by hand, on what the documents show: noise, mappings, channels first or last."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae.tests.training.case import TINY
from exact_vae.vae_model.errors import InputError
from exact_vae.vae_model.families.ldm.distribution import DiagonalGaussianDistribution
from exact_vae.vae_model.training.config import OptimizerSection
from exact_vae.vae_model.training.kl_module import AutoEncoderKL
from torch.utils.data import DataLoader

lightning: Any = pytest.importorskip("lightning", reason="as above")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Lightning 2.6 itself uses what torch has deprecated, and advises many worker processes.
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*smaller than the logging interval.*"),
]
PARAMS: dict[str, Any] = copy.deepcopy(TINY["params"])
RANGE = "images: expected floats in -1..1, got float32 (4, 3, 16, 16) in "


def made(**params: Any) -> AutoEncoderKL:
    """The smallest module, always with the same start values."""
    torch.manual_seed(0)
    return AutoEncoderKL(**{**PARAMS, **params})


def noise() -> Tensor:
    """As the documents' example makes its batch."""
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


FORMS: dict[str, Any] = {
    "as it is": lambda x: x,
    "channels last": lambda x: x.movedim(1, 3),
    "jpg": lambda x: {"jpg": x},
    "image": lambda x: {"image": x.movedim(1, 3), "caption": ["none"] * len(x)},
    "image and label": lambda x: (x, torch.zeros(len(x))),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_step_by_hand_is_the_loss_of_its_batch(form: str) -> None:
    module = made()
    torch.manual_seed(1)
    loss = module.training_step(FORMS[form](noise()), 0)
    torch.manual_seed(1)
    moments, _ = module.model.encode(noise(), unregularized=True)
    posterior = DiagonalGaussianDistribution(moments)
    y = module.decode(posterior.mean + posterior.std * torch.randn_like(posterior.mean))
    expected = (noise() - y).abs().mean() + 1e-5 * posterior.kl().mean() / posterior.mean[0].numel()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)  # float32, in another order
    loss.backward()
    assert module.get_last_layer().grad is not None


def test_a_loop_of_ones_own_trains() -> None:
    module = made()
    module.settings = OptimizerSection(lr=1e-2)
    (optimizer,) = module.configure_optimizers()
    losses: list[float] = []
    for number in range(20):
        loss = module.training_step({"jpg": noise()}, number)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    found = module.validation_step(noise(), 0)
    assert torch.equal(found["inputs"], noise())
    torch.testing.assert_close(found["reconstructions"], module.reconstruct(noise())[0], rtol=0, atol=1e-6)


def test_where_the_images_are_is_said_in_either_way() -> None:
    x = noise().clamp(-1, 1)
    for module in (made(image_key="photo"), made(input_key="photo")):
        assert (module.image_key, module.input_key) == ("photo", "photo")
        assert torch.equal(module.get_input({"photo": x})[0], x)
        assert torch.equal(module.get_input({"photo": 0 * x, "other": x.movedim(1, 3)}, "other")[0], x)
    module = made()
    module.image_key = "other"
    assert torch.equal(module.get_input({"other": x})[0], x)


def test_grey_images_may_have_no_channels() -> None:
    module = made(ddconfig={**PARAMS["ddconfig"], "in_channels": 1, "out_ch": 1})
    x = noise()[:, 0].clamp(-1, 1)
    assert torch.equal(module.get_input(x)[0], x[:, None])


def test_noise_is_taken_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    module = made()
    for factor in (1.0, 3.0):
        x, _ = module.get_input(noise() * factor)
        assert torch.equal(x, noise() * factor)
    assert [record.getMessage()[: len(RANGE)] for record in caplog.records] == [RANGE]
    caplog.clear()
    made().get_input(noise().clamp(-1, 1))
    assert caplog.records == []


def test_a_trainer_trains_on_noise_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module, before = made(), made().get_last_layer()
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(list(noise()), 2), DataLoader(list(noise()[:1]), 1))
    assert module.batches_done == 4
    assert not torch.equal(module.get_last_layer(), before)
    assert len([record for record in caplog.records if record.getMessage().startswith("images: expected")]) == 1
    loss = module.training_step(noise(), 0)  # by hand again, when the Trainer has done its work
    assert loss.requires_grad
    assert module.batches_done == 4


def test_a_discriminator_needs_a_trainer() -> None:
    module = made(lossconfig={"params": {"disc_weight": 0.1, "disc_layers": 1, "disc_width": 4}})
    with pytest.raises(InputError, match=r"training_step: expected a Trainer, which .*, got none: call") as caught:
        module.training_step(noise(), 0)
    assert "\n" not in str(caught.value)
