"""Batches and losses in Python that once trained without a word."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from exact_vae import InputError

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae.tests.training.case import TINY
from exact_vae.vae_model.training.autoencoder_loss import AutoencoderLoss, DefaultLoss
from exact_vae.vae_model.training.kl_module import AutoEncoderKL

pytestmark = pytest.mark.usefixtures("one_thread")

NOTES = "exact_vae.vae_model.notes"


def test_images_of_0_to_1_are_told_once_a_run(caplog: pytest.LogCaptureFixture) -> None:
    """Those of -1..1, and bytes, which are scaled, are not."""
    module = AutoEncoderKL(**copy.deepcopy(TINY["params"]))
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.INFO, NOTES):
        for batch in (x * 2 - 1, (x * 255).byte(), {"jpg": x, "crop": torch.arange(2)}):
            module.training_step(batch, 0)
        assert not caplog.records
        for batch in (x, {"jpg": x}, (x, 0)):
            assert torch.isfinite(module.training_step(batch, 0))
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().endswith("if 0 is black in them, pass x * 2 - 1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kl_weight": "1e-6"}, "kl_weight: expected a finite number of at least 0, got '1e-6'"),
        ({"kl_weight": -1.0}, "kl_weight: expected a finite number of at least 0, got -1.0"),
        ({"learn_logvar": "no"}, "learn_logvar: expected True or False, got 'no'"),
        ({"logvar_init": None}, "logvar_init: expected a finite number, got None"),
        ({"disc_start": 1.5}, "disc_start: expected a whole number of at least 0, got 1.5"),
        ({"disc_weight": "0.5"}, "disc_weight: expected a finite number of at least 0, got '0.5'"),
        ({"terms": {"l1": "1"}}, "terms: l1: expected a finite number of at least 0, got '1'"),
    ],
)
def test_arguments_of_losses(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        AutoencoderLoss(**options)
    assert f"AutoencoderLoss: {words}: correct it" == str(caught.value)
    if "kl_weight" in options:
        with pytest.raises(InputError, match="DefaultLoss: kl_weight: expected a finite number of at least 0"):
            DefaultLoss(**options)
