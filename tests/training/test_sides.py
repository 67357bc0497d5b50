"""Images that no training can take: one line before any loss, by hand and in a Trainer of one's own."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae.tests.training.case import TINY
from exact_vae.vae_model.errors import InputError
from exact_vae.vae_model.families.ldm.distribution import DiagonalGaussianDistribution
from exact_vae.vae_model.training.discriminator import PatchDiscriminator
from exact_vae.vae_model.training.distill import TinyDistillation
from exact_vae.vae_model.training.kl_module import AutoEncoderKL
from exact_vae.vae_model.training.losses import AutoencoderLoss, DefaultLoss

lightning: Any = pytest.importorskip("lightning", reason="as above")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*smaller than the logging interval.*"),
]
PARAMS: dict[str, Any] = copy.deepcopy(TINY["params"])
LOSSES: dict[str, Any] = {
    "usual": {"params": {"terms": {"l1": 1.0, "gradient": 1.0, "structure": 1.0}}},
    "default_loss": {"target": "default_loss"},
    "one's own": lambda x, y, *_: (y - x).square().mean(),
}


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def made(**params: Any) -> AutoEncoderKL:
    """The smallest module, with other arguments."""
    return AutoEncoderKL(**{**PARAMS, **params})


def a_trainer() -> Any:
    return lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


SIDES = {
    (33, 33): "got 33 x 33: crop them to 32 x 32",
    (16, 17): "got 16 x 17: crop them to 16 x 16",
    (1, 16): "got 1 x 16: enlarge them to 2 x 16",
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sides", SIDES)
def test_sides_of_no_whole_cells_are_refused_before_any_loss(sides: tuple[int, int], loss: str) -> None:
    """Of two pixels a cell."""
    module = made(lossconfig=LOSSES[loss])
    text = "images: expected sides of whole latent cells, multiples of 2 pixels, " + SIDES[sides]
    loader = DataLoader(list(images(2, 3, *sides)), 2)
    judged = DataLoader(list(images(2, 3, 16, 16)), 2)
    for call in (
        lambda: module.training_step(images(2, 3, *sides), 0),
        lambda: module.validation_step({"jpg": images(2, *sides, 3)}, 0),
        lambda: a_trainer().fit(module, loader, judged),
        lambda: a_trainer().fit(module, judged, loader),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == text


def test_whole_cells_of_any_shape_train() -> None:
    module = made()
    assert module.training_step(images(1, 3, 34, 18), 0).isfinite()
    assert module.validation_step(images(1, 3, 2, 2), 0)["reconstructions"].shape == (1, 3, 2, 2)


def test_a_distillation_goes_by_its_teachers_cells() -> None:
    module = TinyDistillation("bundled", train=("encoder", "decoder"), width=8, blocks=1)
    with pytest.raises(InputError, match=r"multiples of 8 pixels, got 60 x 64: crop them to 56 x 64$"):
        module.training_step(images(1, 3, 60, 64), 0)


@pytest.mark.parametrize("loss", [AutoencoderLoss(), DefaultLoss()], ids=["usual", "default_loss"])
def test_losses_by_hand_compare_one_shape_alone(loss: Any) -> None:
    """Also where torch would spread one image over several."""
    posterior = DiagonalGaussianDistribution(torch.zeros(2, 8, 4, 4))
    for shape in ((2, 3, 12, 12), (1, 3, 16, 16), (2, 1, 16, 16)):
        text = f"loss: expected reconstructions of the inputs' shape, got {shape} for (2, 3, 16, 16): crop the images"
        with pytest.raises(InputError, match=re.escape(text)):
            loss.autoencoder(images(2, 3, 16, 16), images(*shape), posterior, 0, None, "train")


def test_the_default_loss_of_a_module_by_hand_says_it_too() -> None:
    posterior = DiagonalGaussianDistribution(torch.zeros(1, 8, 16, 16))
    with pytest.raises(InputError, match=r"got \(1, 3, 32, 32\) for \(1, 3, 33, 33\): crop"):
        made().default_loss(images(1, 3, 33, 33), images(1, 3, 32, 32), posterior, 0, None, "train")


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_a_discriminator_says_how_large_images_must_be(layers: int) -> None:
    """Its bound is where torch's own begins."""
    made = PatchDiscriminator(3, 4, layers)
    least = made.least_side
    assert made(images(1, 3, least, least + 3)).shape[:3] == (1, 1, 1)
    with pytest.raises(RuntimeError, match="Kernel size"):
        torch.nn.Sequential(*made)(images(1, 3, least - 1, 64))
    with pytest.raises(InputError, match=rf"at least {least} x {least} pixels, got {least - 1} x 64: train on larger"):
        made(images(1, 3, least - 1, 64))


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (torch.full((1, 3, 8, 8), torch.nan), "in nan..nan: correct what makes them, some are no numbers or infinite"),
        (torch.full((1, 3, 8, 8), -torch.inf), "in -inf..-inf: correct what makes them, some are no numbers or infin"),
        (torch.cat([images(1, 3, 8, 8), images(1, 3, 8, 8) / 0]), ": correct what makes them, some are no numbers"),
        (torch.full((1, 3, 8, 8), 200.0), "in 200..200: scale them"),
        (images(3, 8, 8), "add the batch's dimension, x[None]"),
        (images(8, 8, 3), "add the batch's dimension, x[None]"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "got uint8 (3, 8, 8): add the batch's dimension, x[None]"),
        (images(8, 8), ": give them these four dimensions"),
        (images(2, 5, 3, 8, 8), ": give them these four dimensions"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "got int64 (1, 3, 8, 8): convert them"),
        (images(0, 3, 8, 8), "images: expected at least one, got a batch of (0, 3, 8, 8): leave it out"),
    ],
)
def test_the_advice_is_about_what_is_wrong(batch: Tensor, text: str) -> None:
    module = made()
    for step in (module.training_step, module.validation_step):
        with pytest.raises(InputError) as caught:
            step(batch, 0)
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["32", None, [32]])
def test_an_argument_of_the_wrong_kind_is_not_said_to_be_missing(value: Any) -> None:
    with pytest.raises(InputError) as caught:
        made(ddconfig={**PARAMS["ddconfig"], "ch": value})
    assert str(caught.value) == f"config: ddconfig.ch: expected a whole number, got {value!r}: correct it"
    with pytest.raises(InputError, match=r"^config: ddconfig\.ch: expected a value, got none: add it$"):
        made(ddconfig={k: v for k, v in PARAMS["ddconfig"].items() if k != "ch"})
