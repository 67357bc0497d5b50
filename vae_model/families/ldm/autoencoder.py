"""Autoencoding engines: encoder, regulariser and decoder, with or without the 1x1 quant convolutions.

Source: Stability-AI generative-models `sgm/models/autoencoder.py` (MIT), re-implemented for inference and training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...notes import warn
from ..arguments import half_of, require_kinds, require_planes
from ..video.model import VideoConfig
from .config import KLConfig
from .engine import AbstractAutoencoder
from .instantiate import instantiate_from_config

RegLog = dict[str, Tensor]


class AutoencodingEngine(AbstractAutoencoder):
    """Encoder, regulariser and decoder, each from a {"target", "params"} configuration.

    `encoder_config` or `decoder_config` may be None: half a model, whose missing direction raises RuntimeError.
    `loss_config` is kept for a trainer, all else is AbstractAutoencoder's, in its order where it has no name.
    """

    def __init__(
        self,
        *base_arguments: Any,
        encoder_config: Mapping[str, Any] | None,
        decoder_config: Mapping[str, Any] | None,
        regularizer_config: Mapping[str, Any],
        loss_config: Mapping[str, Any] | None = None,
        **base_options: Any,
    ) -> None:
        super().__init__(*base_arguments, **base_options)
        self.loss_config = loss_config
        if encoder_config is not None:
            self.encoder = cast(nn.Module, instantiate_from_config(encoder_config))
        if decoder_config is not None:
            self.decoder = cast(nn.Module, instantiate_from_config(decoder_config))
        self.regularization = cast(nn.Module, instantiate_from_config(regularizer_config))

    def get_last_layer(self) -> Tensor:
        """The weight of the decoder's last convolution."""
        return half_of(self, "decoder").get_last_layer()

    def get_autoencoder_params(self) -> list[nn.Parameter]:
        """Every parameter of the autoencoder: the quant convolutions too, and of a `loss` what it learns for it.

        A loss that has `get_trainable_autoencoder_parameters` (a learned log-variance) gives those and no others: its
        discriminator has an optimiser of its own.
        """
        found = list(self.parameters(recurse=False))
        for name, part in self.named_children():
            known: Any = part
            if name == "loss":
                found += getattr(known, "get_trainable_autoencoder_parameters", tuple)()
            elif name == "regularization" and hasattr(known, "get_trainable_parameters"):
                found += known.get_trainable_parameters()
            else:
                found += part.parameters()
        return found

    def _moments(self, x: Tensor) -> Tensor:
        """What the regulariser gets: (B, C, H, W) -> (B, 2z or z, h, w)."""
        return half_of(self, "encoder")(x)

    @overload
    def encode(
        self, x: Tensor, return_reg_log: Literal[False] = False, unregularized: Literal[False] = False
    ) -> Tensor: ...
    @overload
    def encode(
        self, x: Tensor, return_reg_log: bool = False, *, unregularized: Literal[True]
    ) -> tuple[Tensor, RegLog]: ...
    @overload
    def encode(self, x: Tensor, return_reg_log: Literal[True]) -> tuple[Tensor, RegLog]: ...

    def encode(
        self, x: Tensor, return_reg_log: bool = False, unregularized: bool = False
    ) -> Tensor | tuple[Tensor, RegLog]:
        """Images in -1..1 to latents.

        Args:    x: (B, C, H, W); H and W round down to whole latent cells.
                 return_reg_log: also return the regulariser's log, {"kl_loss": scalar}.
                 unregularized: return (moments, {}) instead, always a tuple.
        Returns: z (B, z, h, w), or (z, log).
        """
        z = self._moments(x)
        if unregularized:
            return z, {}
        found: Any = self.regularization(z)
        if not (isinstance(found, (tuple, list)) and len(found) == 2 and isinstance(found[1], Mapping)):  # pyright: ignore
            kind = type(found).__name__  # pyright: ignore[reportUnknownArgumentType]
            raise InputError(
                f"{type(self.regularization).__name__}: expected a regulariser that returns latents and a dictionary "
                f"to log, got {kind}: return z, {{}}"
            )
        z, log = cast("tuple[Tensor, RegLog]", found)
        return (z, log) if return_reg_log else z

    def decode(self, z: Tensor, **kwargs: Any) -> Tensor:
        """Latents (B, z, h, w) to raw images (B, C, h*f, w*f), about -1..1, not clamped."""
        return half_of(self, "decoder")(z, **kwargs)

    def forward(self, x: Tensor, **decode_kwargs: Any) -> tuple[Tensor, Tensor, RegLog]:
        """(z, reconstruction, log) of images in -1..1."""
        z, log = self.encode(x, return_reg_log=True)
        return z, self.decode(z, **decode_kwargs), log


class AutoencodingEngineLegacy(AutoencodingEngine):
    """An engine with `quant_conv` behind the encoder and `post_quant_conv` before the decoder, both 1x1.

    `ddconfig` describes both halves; `decoder_ddconfig` the decoder where it differs, `decoder_target` its class.
    `parts` keeps one half only; `use_quant_conv` and `use_post_quant_conv` are False for SD3 and Flux. With
    `max_batch_size`, batches run in chunks; a temporal decoder's chunks are whole groups of `timesteps` frames.
    """

    def __init__(
        self,
        embed_dim: int,
        ddconfig: Mapping[str, Any],
        *,
        decoder_ddconfig: Mapping[str, Any] | None = None,
        decoder_target: str = "Decoder",
        max_batch_size: int | None = None,
        parts: tuple[str, ...] = ("encoder", "decoder"),
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        regularizer_config: Mapping[str, Any],
        loss_config: Mapping[str, Any] | None = None,
        **base_options: Any,
    ) -> None:
        _check_order(type(self).__name__, embed_dim, ddconfig)
        require_kinds(type(self).__name__, locals())
        decoder_config = decoder_ddconfig or ddconfig
        super().__init__(
            encoder_config={"target": "Encoder", "params": ddconfig} if "encoder" in parts else None,
            decoder_config={"target": decoder_target, "params": decoder_config} if "decoder" in parts else None,
            regularizer_config=regularizer_config,
            loss_config=loss_config,
            **base_options,
        )
        self.embed_dim, self.max_batch_size = embed_dim, max_batch_size
        halves, z_channels = 1 + bool(ddconfig.get("double_z", True)), ddconfig["z_channels"]
        if "encoder" in parts and use_quant_conv:
            self.quant_conv = nn.Conv2d(halves * z_channels, halves * embed_dim, kernel_size=1)
        if "decoder" in parts and use_post_quant_conv:
            self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, kernel_size=1)

    def _chunks(self, x: Tensor, group: int = 1) -> tuple[Tensor, ...]:
        """At most `max_batch_size` images each, in whole groups."""
        if self.max_batch_size is None or len(x) <= self.max_batch_size:
            return (x,)
        if group > self.max_batch_size:
            raise ValueError(
                f"max_batch_size: expected at least the {group} frames of one group, got {self.max_batch_size}: "
                "raise it, or say timesteps"
            )
        return x.split(self.max_batch_size // group * group)

    def _moments(self, x: Tensor) -> Tensor:
        chunks = [super(AutoencodingEngineLegacy, self)._moments(chunk) for chunk in self._chunks(x)]
        if hasattr(self, "quant_conv"):
            chunks = [self.quant_conv(chunk) for chunk in chunks]
        return chunks[0] if len(chunks) == 1 else torch.cat(chunks)

    def decode(self, z: Tensor, **kwargs: Any) -> Tensor:
        """Latents (B, embed_dim, h, w) to raw images (B, C, h*f, w*f), about -1..1, not clamped."""
        decoder = half_of(self, "decoder")
        if hasattr(self, "post_quant_conv"):
            require_planes(
                z, getattr(self.post_quant_conv, "in_channels", self.embed_dim), "decode", self.post_quant_conv
            )
        temporal = hasattr(decoder, "time_mode") or any(isinstance(layer, nn.Conv3d) for layer in decoder.modules())
        images: list[Tensor] = []
        for chunk in self._chunks(z, (kwargs.get("timesteps") or len(z)) if temporal else 1):
            images.append(decoder(self.post_quant_conv(chunk) if hasattr(self, "post_quant_conv") else chunk, **kwargs))
        return images[0] if len(images) == 1 else torch.cat(images)


def _check_order(owner: str, embed_dim: Any, ddconfig: Any) -> None:
    """latent-diffusion's own class and the trainable one take ddconfig first."""
    if isinstance(embed_dim, Mapping) or not isinstance(ddconfig, Mapping):
        kinds = f"{type(embed_dim).__name__} and {type(ddconfig).__name__}"
        raise TypeError(f"{owner}: expected embed_dim, then ddconfig, got {kinds}: name the arguments")


class AutoencoderKL(AutoencodingEngineLegacy):
    """The KL autoencoder of Stable Diffusion and its successors; `lossconfig` is the old name of `loss_config`.

    The regulariser is the diagonal Gaussian (nothing where `double_z` is False); `encode` draws a sample unless
    `sample_posterior` is False.
    """

    def __init__(
        self,
        embed_dim: int,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any] | None = None,
        *,
        loss_config: Mapping[str, Any] | None = None,
        sample_posterior: bool = True,
        **engine_options: Any,
    ) -> None:
        _check_order(type(self).__name__, embed_dim, ddconfig)
        require_kinds(type(self).__name__, locals() | engine_options)
        if lossconfig is not None and loss_config is not None:
            raise ValueError("AutoencoderKL: expected one of lossconfig and loss_config, got both: remove one")
        regularizer: dict[str, Any] = {"target": "IdentityRegularizer"}
        if ddconfig.get("double_z", True):
            regularizer = {"target": "DiagonalGaussianRegularizer", "params": {"sample": sample_posterior}}
        super().__init__(
            embed_dim,
            ddconfig=ddconfig,
            regularizer_config=regularizer,
            loss_config=lossconfig if loss_config is None else loss_config,
            **engine_options,
        )
        if not ddconfig.get("double_z", True) and not next(self.parameters()).is_meta:  # a file's own shapes say it
            warn(
                "AutoencoderKL", "double_z is False, hence no variances and no KL: encode gives what the encoder makes"
            )


SAME_ENGINES = (AutoencodingEngine, AutoencodingEngineLegacy, AutoencoderKL)
"""With the same parts these compute the same."""
OTHER_NAMES: dict[str, Callable[..., nn.Module]] = {
    "AutoencoderKLInferenceWrapper": AutoencoderKL,
    "AutoencoderKLModeOnly": partial(AutoencoderKL, sample_posterior=False),
}
"""What configurations may name beside this package's public names."""


def engine_options(config: KLConfig) -> dict[str, Any]:
    """`config` as keyword arguments of AutoencodingEngineLegacy."""
    encoder, decoder = config.ddconfig("encoder"), config.ddconfig("decoder")
    return {
        "embed_dim": config.embed_dim,
        "ddconfig": encoder or decoder or {},
        "decoder_ddconfig": decoder,
        "decoder_target": "VideoDecoder" if isinstance(config, VideoConfig) else "Decoder",
        "parts": tuple(config.halves),
        "use_quant_conv": config.quant_conv,
        "use_post_quant_conv": config.post_quant_conv,
    }


def build_kl(config: KLConfig, *, sample_posterior: bool = False) -> AutoencoderKL:
    """The model that `config` describes, randomly initialised; inference encodes to the mean unless told otherwise."""
    return AutoencoderKL(**engine_options(config), sample_posterior=sample_posterior)
