"""A model and its loss as a LightningModule: its names, its stored arguments, what any Trainer may give it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..families.ldm.distribution import DiagonalGaussianDistribution
from .batches import images_of
from .config import OptimizerSection
from .given_loss import GivenLoss, as_loss
from .lightning_base import EitherModule
from .own_trainer import TrainerWords, batches_of_trainer
from .stored import OWN_LOSS, own_loss, plain, rename_parts, require_own_loss


class ModelModule(EitherModule):
    """What does not depend on how a training goes.

    The parts of `model` (encoder, decoder, ...) are parts of this, so that a state dict has them by their own names.

    Args:    input_key: where the images are in a batch that is a mapping.
    """

    model: nn.Module

    def __init__(self, model: nn.Module, loss: Any, monitor: str | None, input_key: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        object.__setattr__(self, "model", model)  # not itself a part of this, or its tensors would have two names
        for name, part in model.named_children():
            self.add_module(name, part)
        self.loss, self.monitor, self.input_key = loss, monitor, input_key
        self.settings = OptimizerSection()
        self.total_batches, self.accumulate, self.seed = 1, 1, 0
        self.clip: float | None = None
        self.batches_done = 0
        self._criterion: tuple[Any, Any] | None = None
        self._words = TrainerWords()
        self._told: set[str] = set()

    @property
    def image_key(self) -> str:
        """`input_key` under latent-diffusion's name."""
        return self.input_key

    @image_key.setter
    def image_key(self, key: str) -> None:
        self.input_key = key

    @property
    def runs(self) -> bool:
        """Whether a Trainer runs this, rather than that somebody calls a step by hand."""
        return self._trainer is not None and self._trainer.state.stage is not None

    @property
    def criterion(self) -> Any:
        """`loss` behind the interface of `AutoencoderLoss`, also where it is one's own."""
        if self._criterion is None or self._criterion[0] is not self.loss:
            self._criterion = (self.loss, as_loss(self.loss))
        return self._criterion[1]

    @property
    def learning_rate(self) -> float:
        """The autoencoder's rate at its highest, under the name that latent-diffusion's trainer sets."""
        return self.settings.lr

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self.settings = replace(self.settings, lr=rate)

    def factor(self) -> int:
        """Pixels along one side of a latent cell."""
        raise NotImplementedError

    def latent_channels(self) -> int:
        """Channels of the latent."""
        raise NotImplementedError

    def image_channels(self) -> tuple[int, int]:
        """Channels of the images that go in and that come out."""
        raise NotImplementedError

    def get_last_layer(self) -> Tensor | None:
        """The weight of the decoder's last convolution, where there is a decoder."""
        raise NotImplementedError

    def example(self, count: int, side: int) -> tuple[Tensor, Tensor, DiagonalGaussianDistribution]:
        """(images, reconstructions, posterior) of squares as this model has them, random and without a network."""
        inner, outer = (int(self.image_channels()[way]) for way in (0, 1))
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(count, inner, side, side, generator=generator) * 2 - 1
        y = x if inner == outer else x[:, :1].expand(-1, outer, -1, -1)
        cells = side // self.factor()
        moments = torch.randn(count, 2 * self.latent_channels(), cells, cells, generator=generator)
        return x, 0.9 * y, DiagonalGaussianDistribution(moments)

    def remember(self, **arguments: Any) -> None:
        """Put the arguments of the constructor into `hparams`, for `load_from_checkpoint`."""
        arguments["lossconfig"] = None if own_loss(self.loss) else arguments["lossconfig"]
        self.save_hyperparameters(plain(arguments), logger=False)

    def get_input(self, batch: Any, key: str | None = None) -> tuple[Tensor, Tensor | None]:
        """(images (B, C, H, W) in -1..1, numbers of the crops or None) of a batch, whatever `images_of` reads.

        Args:    key: where the images are in a batch that is a mapping; None for `input_key`.
        """
        x, numbers = images_of(batch, key or self.input_key, self.image_channels()[0], self._told)
        if self.device.type != "meta":
            x = x.to(next(self.model.parameters()).dtype)
        return x, numbers

    # Lightning's hooks.

    def configure_callbacks(self) -> list[Any]:
        """No callbacks: this is where a Trainer's settings are known and not yet refused."""
        self._words.take(self.trainer, self)
        return []

    def teardown(self, stage: str) -> None:
        """Leave the Trainer as it was."""
        self._words.give_back(self.trainer)

    def configure_model(self) -> None:
        """Stop gradients that nobody asked for."""
        if isinstance(self.criterion, GivenLoss):
            self.criterion.freeze_the_rest()

    def on_train_start(self) -> None:
        """Under a Trainer of one's own: how long it runs, for the schedule of the rate."""
        if self.total_batches == 1:  # which nobody has set
            self.total_batches = batches_of_trainer(self.trainer, len(as_list(self.optimizers())))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is no tensor."""
        checkpoint["batches_done"], checkpoint[OWN_LOSS] = self.batches_done, own_loss(self.loss)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back, from older checkpoints and those of other trainers, too."""
        if "state_dict" in checkpoint:  # of a spread model Lightning has loaded it already
            rename_parts(checkpoint["state_dict"], dict(self.model.named_children()))
        require_own_loss(self.loss, checkpoint.get(OWN_LOSS))
        self.batches_done = int(checkpoint.get("batches_done", 0))


def as_list(optimizers: Any) -> list[Any]:
    """Lightning gives one optimiser alone."""
    return optimizers if isinstance(optimizers, list) else [optimizers]
