"""Distillation of a tiny autoencoder from a large one, as TAESD was made.

The teacher's latents are the inputs of the tiny decoder and the targets of the tiny encoder; the decoder is to make the
images themselves or, where asked for, the teacher's reconstructions. Method: madebyollin/taesd, by its description.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..bundled import BUNDLED_FILE
from ..checkpoint.load import load_model
from ..families.latent_formats import same_numbers
from ..families.ldm.distribution import DiagonalGaussianDistribution
from ..families.tiny.model import AutoencoderTiny
from .architecture import check_parts
from .arguments import converted
from .config import one_of, require
from .given_loss import GivenLoss
from .losses import LossConfig, make_loss
from .trained import Trained

TARGETS = ("image", "teacher")


class TinyDistillation(Trained):
    """A tiny autoencoder that learns from a teacher.

    Args:    teacher: any file that `load_vae` opens, or "bundled".
             teacher_variant, teacher_part: the variant of a folder's files, one of several VAEs in a checkpoint.
             train: which halves are made; a decoder alone is enough for previews.
             width, blocks: channels and blocks of every stage; the stages follow from the teacher's factor.
             scaling_factor, shift_factor: the tiny model works on (latent - shift_factor) * scaling_factor, which
             should lie within about -3..3; the file remembers both.
             target: "image", or "teacher" for its reconstructions.
             latent_weight: of the encoder's squared error.
             lossconfig, monitor, ema_decay, gradient_checkpointing, input_key: as of AutoEncoderKL; the KL is 0.
    """

    model: AutoencoderTiny  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        teacher: str,
        train: Sequence[str] = ("decoder",),
        width: int = 64,
        blocks: int = 3,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        target: str = "image",
        latent_weight: float = 1.0,
        lossconfig: LossConfig = None,
        monitor: str | None = None,
        ema_decay: float | None = None,
        gradient_checkpointing: bool = False,
        input_key: str = "jpg",
        teacher_variant: str | None = None,
        teacher_part: str | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        given |= converted(
            TinyDistillation.__init__, {name: value for name, value in given.items() if name != "lossconfig"}
        )
        teacher, train, ema_decay = given["teacher"], given["train"], given["ema_decay"]
        require(one_of("model.target", target, TARGETS) + check_parts(train))
        source = BUNDLED_FILE if teacher == "bundled" else teacher
        loaded = load_model(source, dtype=torch.float32, variant=teacher_variant, part=teacher_part, door="")
        config = loaded.config
        latent_channels = config.latent_channels
        stages = 1 + round(math.log2(config.factor))
        model = AutoencoderTiny(
            latent_channels=latent_channels,
            encoder_block_out_channels=(width,) * stages if "encoder" in train else None,
            decoder_block_out_channels=(width,) * stages if "decoder" in train else None,
            num_encoder_blocks=(1,) + (blocks,) * (stages - 1),
            num_decoder_blocks=(blocks,) * (stages - 1) + (1,),
            scaling_factor=scaling_factor,
            shift_factor=shift_factor,
        )
        model.latent_format = same_numbers(scaling_factor, shift_factor, latent_channels)
        if gradient_checkpointing:
            model.enable_gradient_checkpointing()
        super().__init__(model, make_loss(lossconfig), ema_decay, monitor, input_key)
        self.remember(**given)
        self._teacher: list[Any] = [loaded.model]  # in a list: no part of this, and not in the checkpoints
        self._factor, self._latent_channels = config.factor, latent_channels
        self._image_channels = (config.image_channels[0], 3)  # of what the teacher takes, and the tiny decoder makes
        self.target, self.latent_weight = target, latent_weight

    @torch.no_grad()
    def teach(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(the teacher's latents in the tiny model's convention, the image to be made) of images in -1..1."""
        teacher = self._teacher[0].to(x.device)
        z = _tensor(teacher.encode(x))
        y = _tensor(teacher.decode(z)) if self.target == "teacher" else x
        z = (z.float() - self.model.shift_factor) * self.model.scaling_factor
        return z, y.float().clamp(-1, 1)

    def get_last_layer(self) -> Tensor | None:
        """The weight of the decoder's last convolution, where there is a decoder."""
        return cast(Any, self.model).decoder.layers[-1].weight if hasattr(self.model, "decoder") else None

    def _losses(self, x: Tensor, split: str) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        z, wanted = self.teach(x)
        total, y, log = x.new_zeros(()), None, {}
        if hasattr(self.model, "decoder"):
            y = self.model.decode(z)[0].float()
            nothing = DiagonalGaussianDistribution(torch.cat([z, z], dim=1), deterministic=True)
            total, log = self.compare(wanted, y, nothing, split)
        if hasattr(self.model, "encoder"):
            error = (self.model.encode(x)[0].float() - z).square().mean()
            total = total + self.latent_weight * error
            log |= {f"{split}/latent_loss": error.detach(), f"{split}/total_loss": total.detach()}
        return total, y, log

    def training_losses(self, x: Tensor, numbers: Tensor | None) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """The loss of one batch; nothing is drawn."""
        return self._losses(x, "train")

    def validation_losses(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Images of the teacher's latents, and the losses."""
        _, y, log = self._losses(x, "val")
        return (x if y is None else y), log

    def logged_keys(self) -> list[str]:
        """What a validation logs."""
        keys = super().logged_keys() if hasattr(self.model, "decoder") else []
        keys += ["val/rec_loss"] if keys and not isinstance(self.criterion, GivenLoss) else []
        return [*keys, "val/total_loss"] + (["val/latent_loss"] if hasattr(self.model, "encoder") else [])


def _tensor(found: Any) -> Tensor:
    """What a model returned, which for some is (latents or images, what else there is)."""
    return found if isinstance(found, Tensor) else found[0]
