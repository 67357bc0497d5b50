"""The tiny autoencoder: TAESD and its relatives, and TAEF2 with its GroupNorm branch.

Source: diffusers `AutoencoderTiny` (Apache-2.0; keys and behaviour) and madebyollin/taesd (MIT), re-implemented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import VAEFileError
from ...files.weights import Weights
from ..arguments import CALLS, TINY, half_of, require_choice, require_kinds
from ..latent_formats import SPELLINGS
from .coder import ACTIVATIONS, UPSAMPLE_MODES, DecoderTiny, EncoderTiny
from .coder import AutoencoderTinyBlock as AutoencoderTinyBlock
from .config import TinyConfig
from .frozen_config import FrozenConfig
from .infer import pipeline_numbers, settle
from .output import AutoencoderTinyOutput, DecoderOutput
from .pretrained import Pretrained
from .tiles import run_in_tiles


class AutoencoderTiny(Pretrained):
    """TAESD-style autoencoder with diffusers' arguments and keys; images in -1..1, latents in the scaled convention.

    Stages may differ in width. Either `*_block_out_channels` may be None: half a model. `midblock_gn` adds TAEF2's
    GroupNorm branch to the blocks at latent resolution, `strided_stem` makes the encoder begin as TAESana's. `config`
    holds the arguments as given; folders of diffusers are read and written by `from_pretrained` and `save_pretrained`.

    With slicing, batches run image by image. With tiling, images run in overlapping tiles, which is approximate:
    `tile_sample_min_size` pixels or `tile_latent_min_size` cells wide, of which `tile_overlap_factor` is shared.
    """

    decides = ("scaling_factor", "shift_factor", "latent_format", "latent_magnitude", "latent_shift", "force_upcast")
    _supports_gradient_checkpointing = True
    _not_in_diffusers = ("midblock_gn", "strided_stem")
    latent_format: str | None = None  # whose latents it works on, a name in `latent_formats`; None: not known
    latent_patch: int = 1  # side of the squares of its cells in the channels of the latents that a `VAE` of it takes

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        encoder_block_out_channels: Sequence[int] | None = (64, 64, 64, 64),
        decoder_block_out_channels: Sequence[int] | None = (64, 64, 64, 64),
        act_fn: str = "relu",
        upsample_fn: str = "nearest",
        latent_channels: int = 4,
        upsampling_scaling_factor: int = 2,
        num_encoder_blocks: Sequence[int] = (1, 3, 3, 3),
        num_decoder_blocks: Sequence[int] = (3, 3, 3, 1),
        latent_magnitude: float = 3,
        latent_shift: float = 0.5,
        force_upcast: bool = False,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        midblock_gn: bool = False,
        strided_stem: bool = False,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        require_kinds(type(self).__name__, arguments, TINY)
        super().__init__()
        require_choice("act_fn", act_fn, ACTIVATIONS)
        require_choice("upsample_fn", upsample_fn, UPSAMPLE_MODES)
        for half, widths, blocks in (
            ("encoder", encoder_block_out_channels, num_encoder_blocks),
            ("decoder", decoder_block_out_channels, num_decoder_blocks),
        ):
            if widths is not None and len(widths) != len(blocks):
                raise ValueError(f"`{half}_block_out_channels` should have the same length as `num_{half}_blocks`.")
        self.config = FrozenConfig(arguments | {"block_out_channels": decoder_block_out_channels})
        self.latent_magnitude, self.latent_shift = latent_magnitude, latent_shift
        self.force_upcast, self.scaling_factor, self.shift_factor = force_upcast, scaling_factor, shift_factor
        self.use_slicing = self.use_tiling = False
        if encoder_block_out_channels is not None:
            widths = tuple(encoder_block_out_channels)
            self.encoder = EncoderTiny(
                in_channels, latent_channels, num_encoder_blocks, widths, act_fn, midblock_gn, strided_stem
            )
        if decoder_block_out_channels is not None:
            widths, factor = tuple(decoder_block_out_channels), upsampling_scaling_factor
            self.decoder = DecoderTiny(
                latent_channels, out_channels, num_decoder_blocks, widths, factor, act_fn, upsample_fn, midblock_gn
            )
        encoder_factor = 2 ** (len(num_encoder_blocks) - 1)
        decoder_factor = upsampling_scaling_factor ** (len(num_decoder_blocks) - 1)
        self._factors = {"encoder": encoder_factor, "decoder": decoder_factor}
        self.spatial_scale_factor = encoder_factor if decoder_block_out_channels is None else decoder_factor
        self.tile_overlap_factor = 0.125
        self.tile_sample_min_size = 512
        self.tile_latent_min_size = self.tile_sample_min_size // self.spatial_scale_factor

    def _current(self) -> dict[str, Any]:
        """For a config.json: diffusers' numbers are other ones than ours, where it is known whose latents these are."""
        scale, shift = pipeline_numbers(self.latent_format, self.scaling_factor, self.shift_factor)
        return super()._current() | {"scaling_factor": scale, "shift_factor": shift}

    def told_numbers(self) -> dict[str, float]:
        """Scale and shift, where someone said what the latents are: by a name, or by others than the defaults."""
        if self.latent_format is None and (self.scaling_factor, self.shift_factor) == (1.0, 0.0):
            return {}
        return {"vae_scale": float(self.scaling_factor), "vae_shift": float(self.shift_factor)}

    def _header(self) -> dict[str, str]:
        """Whose latents these are, as `save` writes it."""
        if self.latent_format is None:
            return {}
        numbers = {name: repr(number) for name, number in self.told_numbers().items()}
        return {"latent_format": self.latent_format} | numbers

    def _take_told(self, weights: Weights, changes: Mapping[str, Any]) -> None:
        """Whose latents these are, as `load_vae` would read it; who calls knows it better."""
        if not changes.keys().isdisjoint(SPELLINGS):
            return
        hints = {name: str(self.config[name]) for name in SPELLINGS} | dict(weights.metadata)
        try:
            told, _ = settle(TinyConfig(latent_channels=self.config["latent_channels"]), hints, [weights.name])
        except ValueError as error:
            raise VAEFileError(f"{weights.name}: {error}: correct it in its header or config.json") from error
        self.scaling_factor, self.shift_factor = told.scaling_factor, told.shift_factor
        self.latent_format = told.latent_format

    def scale_latents(self, x: Tensor) -> Tensor:
        """Raw latents to 0..1; values outside +-latent_magnitude are cut."""
        require_kinds("scale_latents", {"x": x}, CALLS)
        return (x / (2 * self.latent_magnitude) + self.latent_shift).clamp(0, 1)

    def unscale_latents(self, x: Tensor) -> Tensor:
        """0..1 back to raw latents."""
        require_kinds("unscale_latents", {"x": x}, CALLS)
        return (x - self.latent_shift) * (2 * self.latent_magnitude)

    def enable_slicing(self) -> None:
        """Run batches image by image."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Run batches at once."""
        self.use_slicing = False

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Run images in overlapping tiles; approximate."""
        require_kinds("enable_tiling", {"use_tiling": use_tiling}, TINY)
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Run images whole."""
        self.enable_tiling(False)

    def _run(self, half: str, x: Tensor) -> Tensor:
        network = half_of(self, half)
        if isinstance(network, (EncoderTiny, DecoderTiny)):
            network.require(x)  # tiles of something else would be no better
        if self.use_tiling:
            require_kinds(type(self).__name__, vars(self), TINY)
            network = self._tiled_encode if half == "encoder" else self._tiled_decode
        if self.use_slicing and x.shape[0] > 1:
            return torch.cat([network(image) for image in x.split(1)])
        return network(x)

    def _tiled_encode(self, x: Tensor) -> Tensor:
        """Images to latents in overlapping tiles; approximate."""
        factor = self._factors["encoder"]
        cells = self.tile_sample_min_size // factor
        shared = int(cells * self.tile_overlap_factor)
        return run_in_tiles(self.encoder, x, cells=cells, shared=shared, before=factor, after=1)

    def _tiled_decode(self, x: Tensor) -> Tensor:
        """Latents to images in overlapping tiles; approximate."""
        cells = self.tile_latent_min_size
        shared = int(cells * self.tile_overlap_factor)
        return run_in_tiles(self.decoder, x, cells=cells, shared=shared, before=1, after=self._factors["decoder"])

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderTinyOutput | tuple[Tensor]:
        """Images (B, in_channels, H, W) in -1..1 to latents (B, latent_channels, ceil(H / f), ceil(W / f))."""
        latents = self._run("encoder", x)
        return AutoencoderTinyOutput(latents) if return_dict else (latents,)

    def decode(
        self, x: Tensor, generator: torch.Generator | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[Tensor]:
        """Latents (B, latent_channels, h, w) to images (B, out_channels, h*f, w*f); `generator` is unused."""
        sample = self._run("decoder", x)
        return DecoderOutput(sample) if return_dict else (sample,)

    def forward(self, sample: Tensor, return_dict: bool = True, quantize: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Encode and decode images, the latents in between stored in 8 bits.

        The bytes let no gradient through to the encoder and cut latents beyond +-latent_magnitude; with `quantize`
        False the latents stay as they are.
        """
        z = self.encode(sample)[0]
        if quantize:
            wide = z.to(torch.promote_types(z.dtype, torch.float32))
            stored = (self.scale_latents(wide) * 255).round().byte()
            z = self.unscale_latents(stored.to(wide.dtype) / 255).to(z.dtype)
        return self.decode(z, return_dict=return_dict)
