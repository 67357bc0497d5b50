"""The trainable KL autoencoder: a LightningModule around the model of `vae_model/families/ldm/autoencoder.py`.

Source: `AutoencoderKL` of CompVis latent-diffusion (MIT) and the seed's `AutoEncoderKL`, re-implemented: here both the
autoencoder and the discriminator are trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..families.ldm.autoencoder import AutoencoderKL
from ..families.ldm.distribution import DiagonalGaussianDistribution
from .architecture import (
    PARTS,
    STARTS,
    check_parts,
    freeze_all_but,
    load_start,
    model_options,
    recompute_blocks,
    take_weights,
)
from .arguments import converted
from .config import one_of, require
from .given_loss import GivenLoss
from .losses import AutoencoderLoss, DefaultLoss, LossConfig, make_loss
from .trained import Trained

_SIMPLE = (
    "ckpt_path", "ignore_keys", "colorize_nlabels", "monitor", "ema_decay", "start", "train", "gradient_checkpointing",
    "input_key", "image_key", "use_quant_conv", "use_post_quant_conv", "ckpt_variant", "ckpt_part",
)  # fmt: skip
"""Arguments that nothing below checks."""


class AutoEncoderKL(Trained):
    """A KL autoencoder with its loss, to be trained, by `exact-vae train` or by a Lightning Trainer of one's own.

    Args:    ddconfig: ldm's arguments of Encoder and Decoder; None takes the architecture of `ckpt_path`.
             embed_dim: channels of the latent.
             lossconfig: {"target", "params"} of a loss in `losses.LOSSES`, or one's own: a function, a module or a
             dotted path, called as `given_loss` says. None is AutoencoderLoss. The seed's own default, the method
             `default_loss`, collapses the posterior and has to be asked for, by that name.
             ckpt_path: weights to start from, any file that `load_vae` opens, or "bundled".
             ckpt_variant, ckpt_part: the variant of a folder's files, one of several autoencoders in a checkpoint.
             ignore_keys: beginnings of keys that are not taken from there.
             colorize_nlabels: channels of the images, where pictures of them need a projection onto three.
             monitor: the logged value that tells the best weights.
             ema_decay: of the moving average; None for none.
             start: a name in `architecture.STARTS`, without `ckpt_path`.
             train: which halves are trained; the other stays as it is, its quant convolution too.
             input_key: where the images are in a batch that is a mapping; latent-diffusion's `image_key` is the same.
             decoder_ddconfig: of the decoder, where it differs.
             use_quant_conv, use_post_quant_conv: the 1x1 convolutions around the latent; None as `ckpt_path` has them,
             else True.
    """

    model: AutoencoderKL  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        ddconfig: Mapping[str, Any] | None = None,
        embed_dim: int | None = None,
        lossconfig: LossConfig = None,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] | None = (),
        colorize_nlabels: int | None = None,
        monitor: str | None = None,
        ema_decay: float | None = None,
        start: str = "default",
        train: Sequence[str] = PARTS,
        gradient_checkpointing: bool = False,
        input_key: str = "jpg",
        decoder_ddconfig: Mapping[str, Any] | None = None,
        use_quant_conv: bool | None = None,
        use_post_quant_conv: bool | None = None,
        ckpt_variant: str | None = None,
        ckpt_part: str | None = None,
        image_key: str | None = None,
    ) -> None:
        given = converted(AutoEncoderKL.__init__, {name: value for name, value in locals().items() if name in _SIMPLE})
        ckpt_path, ignore_keys, train, ema_decay = (
            given[name] for name in ("ckpt_path", "ignore_keys", "train", "ema_decay")
        )
        require(one_of("model.start", start, STARTS) + check_parts(train))
        loaded = (
            None if ckpt_path is None else load_start(ckpt_path, ckpt_variant, ckpt_part, told=ddconfig is not None)
        )
        quant = {"use_quant_conv": use_quant_conv, "use_post_quant_conv": use_post_quant_conv}
        options = model_options(ddconfig, decoder_ddconfig, embed_dim, quant, loaded)
        model = AutoencoderKL(**options)
        if loaded is None:
            STARTS[start](model)
        else:
            take_weights(model, loaded, ignore_keys or (), str(ckpt_path))
        if gradient_checkpointing:
            recompute_blocks(model)
        freeze_all_but(model, train)
        input_key = image_key or input_key
        super().__init__(model, make_loss(lossconfig), ema_decay, monitor, input_key)
        self.remember(
            **options,
            lossconfig=lossconfig,
            colorize_nlabels=colorize_nlabels,
            monitor=monitor,
            ema_decay=ema_decay,
            train=train,
            gradient_checkpointing=gradient_checkpointing,
            input_key=input_key,
        )
        self.embed_dim = self._latent_channels = model.embed_dim
        encoder, decoder = cast(Any, model.encoder), cast(Any, model.decoder)
        self._factor = 2 ** (decoder.num_resolutions - 1)
        self._image_channels = (encoder.conv_in.in_channels, decoder.conv_out.out_channels)
        if colorize_nlabels is not None:
            generator = torch.Generator().manual_seed(0)
            self.register_buffer("colorize", torch.randn(3, colorize_nlabels, 1, 1, generator=generator))

    def init_from_checkpoint(self, path: str, ignore_keys: Sequence[str] = ()) -> None:
        """Take the weights of a file, all but those whose names begin with one of `ignore_keys`."""
        given = converted(self.init_from_checkpoint, {"path": path, "ignore_keys": ignore_keys})
        take_weights(self.model, load_start(given["path"]), given["ignore_keys"], given["path"])

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        """The posterior of images (B, C, H, W) in -1..1."""
        moments, _ = self.model.encode(x, unregularized=True)
        return DiagonalGaussianDistribution(moments)

    def decode(self, z: Tensor) -> Tensor:
        """Images of about -1..1 of latents (B, embed_dim, h, w)."""
        return self.model.decode(z)

    def forward(self, input: Tensor, sample_posterior: bool = True) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """(reconstructions, posterior) of images in -1..1."""
        posterior = self.encode(input)
        return self.decode(posterior.sample() if sample_posterior else posterior.mode()), posterior

    def get_last_layer(self) -> Tensor:
        """The weight of the decoder's last convolution."""
        return self.model.get_last_layer()

    @torch.no_grad()
    def sample(self, count: int, height: int, width: int, generator: torch.Generator | None = None) -> Tensor:
        """Images (count, C, height, width) of latents from the prior: noise, unless the KL weight was strong."""
        cells = (height // self.factor(), width // self.factor())
        z = torch.randn(count, self.model.embed_dim, *cells, generator=generator)
        return self.decode(z.to(self.get_last_layer()))

    @torch.no_grad()
    def log_images(self, batch: Any, only_inputs: bool = False, split: str = "train") -> dict[str, Tensor]:
        """Pictures (B, 3, H, W) in about -1..1 for an image logger: inputs, reconstructions, samples of the prior."""
        x, _ = self.get_input(batch)
        x = x.to(self.device)
        if only_inputs:
            return {"inputs": self.to_rgb(x)}
        y, posterior = self(x)
        z = torch.randn_like(posterior.mean)
        return {"inputs": self.to_rgb(x), "reconstructions": self.to_rgb(y), "samples": self.to_rgb(self.decode(z))}

    def default_loss(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        posterior: DiagonalGaussianDistribution,
        global_step: int,
        last_layer: Tensor | None,
        split: str,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The seed's loss, mean squared error + 0.5 * summed KL. Unsafe: the posterior collapses. See `DefaultLoss`."""
        return DefaultLoss().autoencoder(inputs, reconstructions, posterior, global_step, last_layer, split)

    def to_rgb(self, x: Tensor) -> Tensor:
        """Three channels in -1..1 for a picture of images with others: a fixed random projection."""
        if x.shape[1] in (3, 4):  # the fourth is what is opaque
            return x[:, :3].clamp(-1, 1)
        if not hasattr(self, "colorize"):
            return x[:, :1].clamp(-1, 1).expand(-1, 3, -1, -1)
        y = nn.functional.conv2d(x, cast(Tensor, self.colorize).to(x))
        return 2 * (y - y.min()) / (y.max() - y.min()).clamp_min(1e-12) - 1

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(reconstructions, means) of images in -1..1."""
        mean = self.encode(x).mode()
        return self.decode(mean), mean

    def training_losses(self, x: Tensor, numbers: Tensor | None) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """The loss of one batch, with sampled posteriors."""
        moments, _ = self.model.encode(x, unregularized=True)
        posterior = DiagonalGaussianDistribution(moments.float() if moments.dtype != torch.float64 else moments)
        y = self.decode(posterior.mean + posterior.std * self.noise_like(posterior.mean, numbers))
        y = y.to(posterior.mean.dtype)
        total, log = self.compare(x.to(y), y, posterior, "train")
        return total, y, log

    def validation_losses(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstructions from the means, and their losses."""
        posterior = self.encode(x)
        y = self.decode(posterior.mode()).to(x.dtype)
        wide = DiagonalGaussianDistribution(posterior.parameters.to(x.dtype))
        _, log = self.compare(x, y, wide, "val")
        return y, log | {"val/latent_std": wide.mean.std()}

    def logged_keys(self) -> list[str]:
        """What a validation logs."""
        names = ["rec_loss", "kl_loss", "total_loss"]
        if isinstance(self.loss, AutoencoderLoss):
            names += ["nll_loss", "logvar"] + (["g_loss", "d_weight"] if self.loss.discriminator is not None else [])
        names = ["total_loss"] if isinstance(self.criterion, GivenLoss) else names
        return [*super().logged_keys(), "val/latent_std", *(f"val/{name}" for name in names)]
