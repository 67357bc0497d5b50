"""The trainable KL autoencoder: a LightningModule around the model of `vae_model/autoencoder.py`.

Source: `AutoencoderKL` of CompVis latent-diffusion (MIT) and the seed's `AutoEncoderKL`, re-implemented: here both the
autoencoder and the discriminator are trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..autoencoder import AutoencoderKL, engine_options
from ..bundled import BUNDLED_FILE
from ..config import KLConfig
from ..distribution import DiagonalGaussianDistribution
from ..load import LoadedModel, load_model
from .checkpointing import recompute_blocks
from .config import ConfigError, one_of, require
from .losses import DefaultLoss, call_checked, make_loss
from .start import STARTS
from .trained import Trained

PARTS = ("encoder", "decoder")


class AutoEncoderKL(Trained):
    """A KL autoencoder with its loss, to be trained.

    Args:    ddconfig: ldm's arguments of Encoder and Decoder; None takes the architecture of `ckpt_path`.
             embed_dim: channels of the latent.
             lossconfig: {"target", "params"} of a loss in `losses.LOSSES`; None is AutoencoderLoss. The seed's own
             default, the method `default_loss`, collapses the posterior and has to be asked for.
             ckpt_path: weights to start from, any file that `load_vae` opens, or "bundled".
             ckpt_variant, ckpt_part: the variant of a folder's files, one of several autoencoders in a checkpoint.
             ignore_keys: beginnings of keys that are not taken from there.
             colorize_nlabels: channels of the images, where pictures of them need a projection onto three.
             monitor: the logged value that tells the best weights.
             ema_decay: of the moving average; None for none.
             start: a name in `start.STARTS`, without `ckpt_path`.
             train: which halves are trained; the other stays as it is, its quant convolution too.
    """

    model: AutoencoderKL  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        ddconfig: Mapping[str, Any] | None = None,
        embed_dim: int | None = None,
        lossconfig: Mapping[str, Any] | None = None,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        colorize_nlabels: int | None = None,
        monitor: str | None = None,
        ema_decay: float | None = None,
        start: str = "default",
        train: Sequence[str] = PARTS,
        gradient_checkpointing: bool = False,
        ckpt_variant: str | None = None,
        ckpt_part: str | None = None,
    ) -> None:
        require(one_of("model.start", start, STARTS) + check_parts(train))
        loaded = None if ckpt_path is None else _load(ckpt_path, ckpt_variant, ckpt_part)
        model = _build(ddconfig, embed_dim, loaded)
        if loaded is None:
            STARTS[start](model)
        else:
            _take_weights(model, loaded, ignore_keys, str(ckpt_path))
        if gradient_checkpointing:
            recompute_blocks(model)
        _freeze_all_but(model, train)
        super().__init__(model, make_loss(lossconfig), ema_decay, monitor)
        if colorize_nlabels is not None:
            generator = torch.Generator().manual_seed(0)
            self.register_buffer("colorize", torch.randn(3, colorize_nlabels, 1, 1, generator=generator))

    @property
    def encoder(self) -> nn.Module:
        """The model's encoder."""
        return self.model.encoder

    @property
    def decoder(self) -> nn.Module:
        """The model's decoder."""
        return self.model.decoder

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

    def factor(self) -> int:
        """Pixels along one side of a latent cell."""
        return 2 ** (cast(Any, self.model.decoder).num_resolutions - 1)

    def get_last_layer(self) -> Tensor:
        """The weight of the decoder's last convolution."""
        return self.model.get_last_layer()

    @torch.no_grad()
    def sample(self, count: int, height: int, width: int, generator: torch.Generator | None = None) -> Tensor:
        """Images (count, C, height, width) of latents from the prior: noise, unless the KL weight was strong."""
        cells = (height // self.factor(), width // self.factor())
        z = torch.randn(count, self.model.embed_dim, *cells, generator=generator)
        return self.decode(z.to(self.get_last_layer()))

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
        if x.shape[1] == 3:
            return x.clamp(-1, 1)
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
        with self.in_float32():
            total, log = self.loss.autoencoder(
                x.to(y), y, posterior, self.batches_done, self.get_last_layer(), "train", self.average
            )
        return total, y, log

    def validation_losses(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstructions from the means, and their losses."""
        posterior = self.encode(x)
        y = self.decode(posterior.mode()).to(x.dtype)
        with self.in_float32():
            wide = DiagonalGaussianDistribution(posterior.parameters.to(x.dtype))
            _, log = self.loss.autoencoder(x, y, wide, self.batches_done, None, "val")
        return y, log | {"val/latent_std": wide.mean.std()}

    def logged_keys(self) -> list[str]:
        """What a validation logs."""
        names = ["rec_loss", "kl_loss", "total_loss"]
        if not isinstance(self.loss, DefaultLoss):
            names += ["nll_loss", "logvar"] + (["g_loss", "d_weight"] if self.loss.discriminator is not None else [])
        return [*super().logged_keys(), "val/latent_std", *(f"val/{name}" for name in names)]


def check_parts(train: Sequence[str]) -> list[str]:
    """The problems of a list of halves to train."""
    if not train:
        return ["model.train: expected encoder, decoder or both, got nothing: name one"]
    return [problem for part in train for problem in one_of("model.train", part, PARTS)]


def _load(path: str, variant: str | None, part: str | None) -> LoadedModel:
    """The weights to start from; only image autoencoders of the KL family have what is trained here."""
    source = BUNDLED_FILE if path == "bundled" else path
    loaded = load_model(source, dtype=torch.float32, variant=variant, part=part)
    if not isinstance(loaded.model, AutoencoderKL) or type(loaded.config) is not KLConfig or loaded.family != "kl":
        raise ConfigError(
            f"model.ckpt_path: expected a KL image autoencoder, got {loaded.family} in {path}: use another"
        )
    return loaded


def _build(ddconfig: Mapping[str, Any] | None, embed_dim: int | None, loaded: LoadedModel | None) -> AutoencoderKL:
    if ddconfig is None and loaded is None:
        raise ConfigError("model.params: expected ddconfig or ckpt_path, got neither: add one")
    if ddconfig is None:
        assert loaded is not None
        options = engine_options(cast(KLConfig, loaded.config))
        if options["parts"] != PARTS:
            raise ConfigError(
                f"model.ckpt_path: expected encoder and decoder, got {options['parts']}: use a whole file"
            )
        return AutoencoderKL(**options)
    _check_ddconfig(ddconfig)
    if embed_dim is None:
        raise ConfigError("model.params: expected embed_dim beside ddconfig, got none: add it")
    quant: dict[str, Any] = {}
    if loaded is not None:
        config = cast(KLConfig, loaded.config)
        quant = {"use_quant_conv": config.quant_conv, "use_post_quant_conv": config.post_quant_conv}
    return AutoencoderKL(embed_dim, ddconfig=ddconfig, **quant)


def _check_ddconfig(ddconfig: Mapping[str, Any]) -> None:
    """Names, types and the one value that training needs."""
    if not ddconfig.get("double_z", True):
        raise ConfigError("ddconfig.double_z: expected true, got false: a KL autoencoder has means and variances")
    call_checked(_encoder_arguments, ddconfig, "ddconfig")


def _encoder_arguments(
    *,
    ch: int,
    in_channels: int,
    out_ch: int,
    num_res_blocks: int,
    z_channels: int,
    ch_mult: tuple[float, ...] = (1, 2, 4, 8),
    attn_resolutions: tuple[int, ...] = (),
    dropout: float = 0.0,
    resamp_with_conv: bool = True,
    resolution: int = 256,
    double_z: bool = True,
    use_linear_attn: bool = False,
    attn_type: str = "vanilla",
    num_groups: int = 32,
) -> None:
    """The arguments a ddconfig may have, for their names and types."""


def _take_weights(model: AutoencoderKL, loaded: LoadedModel, ignore_keys: Sequence[str], name: str) -> None:
    """Copy the weights, all but the ignored ones; ConfigError naming what does not fit."""
    ours = model.state_dict()
    given = {k: v for k, v in loaded.model.state_dict().items() if not k.startswith(tuple(ignore_keys) or ("\0",))}
    ignored = {key for key in ours if key.startswith(tuple(ignore_keys) or ("\0",))}
    problems = [f"{key} missing" for key in sorted(ours.keys() - given.keys() - ignored)]
    problems += [f"{key} unknown" for key in sorted(given.keys() - ours.keys())]
    shared = sorted(ours.keys() & given.keys())
    problems += [
        f"{key} {tuple(given[key].shape)} instead of {tuple(ours[key].shape)}"
        for key in shared
        if given[key].shape != ours[key].shape
    ]
    if problems:
        found = "; ".join(problems[:4]) + (f"; {len(problems) - 4} more" if len(problems) > 4 else "")
        raise ConfigError(f"model.ckpt_path: expected weights that fit ddconfig, got {name} with {found}: use another")
    model.load_state_dict(ours | given)


def _freeze_all_but(model: AutoencoderKL, train: Sequence[str]) -> None:
    owners = {"quant_conv": "encoder", "post_quant_conv": "decoder"}
    for name, part in model.named_children():
        part.requires_grad_(owners.get(name, name) in train)
