"""A model and its loss as a LightningModule: its names, its stored arguments, what any Trainer may give it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..families.ldm.distribution import DiagonalGaussianDistribution
from .autoencoder_loss import AutoencoderLoss, DefaultLoss
from .batches import images_of
from .config import OptimizerSection
from .given_loss import GivenLoss, as_loss, name_of
from .lightning_base import EitherModule

_OWN_LOSS = "own_loss"
"""Under this key a checkpoint has the name of a loss of one's own. It is not stored as an argument, since reading a
checkpoint must not import what the checkpoint names."""


class ModelModule(EitherModule):
    """What does not depend on how a training goes.

    The parts of `model` (encoder, decoder, ...) are parts of this, so that a state dict has them by their own names.

    Subclasses set what `factor`, `latent_channels` and `image_channels` return.

    Args:    input_key: where the images are in a batch that is a mapping.
    """

    model: nn.Module
    _factor: int
    _latent_channels: int
    _image_channels: tuple[int, int]

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
        self._taken: dict[str, Any] = {}
        """What a Trainer of one's own was told, while this follows it: Lightning refuses it beside manual steps."""
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
        return self._factor

    def latent_channels(self) -> int:
        """Channels of the latent."""
        return self._latent_channels

    def image_channels(self) -> tuple[int, int]:
        """Channels of the images that go in and that come out."""
        return self._image_channels

    def example(self, count: int, side: int) -> tuple[Tensor, Tensor, DiagonalGaussianDistribution]:
        """(images, reconstructions, posterior) of squares as this model has them, random and without a network."""
        inner, outer = self.image_channels()
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(count, inner, side, side, generator=generator) * 2 - 1
        y = x if inner == outer else x[:, :1].expand(-1, outer, -1, -1)
        cells = side // self.factor()
        moments = torch.randn(count, 2 * self.latent_channels(), cells, cells, generator=generator)
        return x, 0.9 * y, DiagonalGaussianDistribution(moments)

    def remember(self, **arguments: Any) -> None:
        """Put the arguments of the constructor into `hparams`, for `load_from_checkpoint`."""
        arguments["lossconfig"] = None if self._own_loss() else arguments["lossconfig"]
        self.save_hyperparameters(plain(arguments), logger=False)

    def _own_loss(self) -> str | None:
        """The name of a loss that is none of the project's."""
        return None if isinstance(self.loss, (AutoencoderLoss, DefaultLoss)) else name_of(self.loss)

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
        """No callbacks: this is where a Trainer's settings are known and not yet refused, so it takes them over."""
        trainer = self.trainer
        clip, every = trainer.gradient_clip_val, trainer.accumulate_grad_batches
        algorithm = str(getattr(trainer.gradient_clip_algorithm, "value", trainer.gradient_clip_algorithm or "norm"))
        if clip and algorithm != "norm":
            raise InputError(f"gradient_clip_algorithm: expected norm, got {algorithm}: leave it out")
        if clip:
            self._taken["gradient_clip_val"], trainer.gradient_clip_val = clip, None
            self.clip = float(clip)
        if every != 1:
            self._taken["accumulate_grad_batches"], trainer.accumulate_grad_batches = every, 1
            self.accumulate = int(every)
        return []

    def teardown(self, stage: str) -> None:
        """Leave the Trainer as it was."""
        for name, value in self._taken.items():
            setattr(self.trainer, name, value)
        self._taken = {}

    def configure_model(self) -> None:
        """Stop gradients that nobody asked for."""
        if isinstance(self.criterion, GivenLoss):
            self.criterion.freeze_the_rest()

    def on_train_start(self) -> None:
        """Under a Trainer of one's own: how many batches it runs, for the schedule of the rate; 1 where it knows none.

        Its `max_steps` counts the steps of all optimisers.
        """
        if self.total_batches != 1:  # somebody has set it
            return
        trainer = self.trainer
        batches = trainer.num_training_batches * (trainer.max_epochs or 0)
        if trainer.max_steps is not None and trainer.max_steps > 0:
            batches = max(1, trainer.max_steps // len(as_list(self.optimizers())))
        self.total_batches = int(batches) if 0 < batches < math.inf else 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is no tensor."""
        checkpoint["batches_done"], checkpoint[_OWN_LOSS] = self.batches_done, self._own_loss()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back; tensors of older checkpoints, `model.encoder...`, get the names that they have today."""
        state = checkpoint.get("state_dict", {})  # of a spread model Lightning has loaded it already
        beginnings = tuple(f"model.{part}." for part, _ in self.model.named_children())
        for name in [name for name in state if name.startswith(beginnings)]:
            state[name.removeprefix("model.")] = state.pop(name)
        stored = checkpoint.get(_OWN_LOSS)
        if stored is not None and self._own_loss() != stored:
            raise InputError(
                f"checkpoint: expected the loss that it was trained with, {stored}, got {name_of(self.loss)}: "
                "give it, as in load_from_checkpoint(path, lossconfig=...)"
            )
        self.batches_done = int(checkpoint.get("batches_done", 0))


def require_wide(model: nn.Module) -> None:
    """InputError for weights in 16 bits, in which small steps are lost and losses overflow."""
    dtype = next(model.parameters()).dtype
    if dtype in (torch.float16, torch.bfloat16):
        raise InputError(
            f"training: expected weights in float32 or float64, got {str(dtype).removeprefix('torch.')}: say "
            "precision='bf16-mixed' or '16-mixed' instead of 'bf16-true' or '16-true', or call module.float()"
        )


def as_list(optimizers: Any) -> list[Any]:
    """Lightning gives one optimiser alone."""
    return optimizers if isinstance(optimizers, list) else [optimizers]


def plain(value: Any) -> Any:
    """Mappings as dicts, sequences as lists, paths as text: what a checkpoint can be read with `weights_only`."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (str, bool, int, float, type(None))):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(cast("os.PathLike[str]", value))
    if isinstance(value, Sequence):
        return [plain(item) for item in cast("Sequence[Any]", value)]
    return str(value)
