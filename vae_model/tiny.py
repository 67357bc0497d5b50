"""The tiny autoencoder: TAESD and its relatives, and TAEF2 with its GroupNorm branch.

Source: diffusers `AutoencoderTiny` (Apache-2.0; keys and behaviour) and madebyollin/taesd (MIT), re-implemented.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .tiny_tiles import run_in_tiles

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
}


class AutoencoderTinyOutput(NamedTuple):
    """What `encode` returns: latents (B, latent_channels, h, w)."""

    latents: Tensor


class DecoderOutput(NamedTuple):
    """What `decode` returns: sample (B, out_channels, H, W), about -1..1."""

    sample: Tensor


class AutoencoderTinyBlock(nn.Module):
    """Three 3x3 convolutions with a skip, and for TAEF2 a GroupNorm branch in front, over the whole image."""

    def __init__(self, in_channels: int, out_channels: int, act_fn: str = "relu", midblock_gn: bool = False) -> None:
        super().__init__()
        activation = ACTIVATIONS[act_fn]
        self.conv = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            activation(),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
            activation(),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
        )
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
        self.fuse = nn.ReLU()
        if midblock_gn:
            inner = 4 * in_channels
            self.pool = nn.Sequential(
                nn.Conv2d(in_channels, inner, kernel_size=1, bias=False),
                nn.GroupNorm(4, inner),
                nn.ReLU(),
                nn.Conv2d(inner, in_channels, kernel_size=1, bias=False),
            )

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return self.fuse(self.conv(x) + self.skip(x))


def _run(layers: nn.Sequential, x: Tensor, checkpointing: bool) -> Tensor:
    """All layers; with `checkpointing` and autograd, what is inside a block is computed again on the way back."""
    if not (checkpointing and torch.is_grad_enabled()):
        return layers(x)
    for layer in layers:
        block = isinstance(layer, AutoencoderTinyBlock)
        x = cast(Tensor, checkpoint(layer, x, use_reentrant=False)) if block else layer(x)
    return x


class EncoderTiny(nn.Module):
    """Images in -1..1 (B, in_channels, H, W) to latents; every stage after the first halves both sides, rounding up.

    With `strided_stem` the first stage halves, too, and the first two convolutions are activated, as in TAESana.
    """

    gradient_checkpointing = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: Sequence[int],
        block_out_channels: Sequence[int],
        act_fn: str,
        midblock_gn: bool = False,
        strided_stem: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for stage, (blocks, stage_width) in enumerate(zip(num_blocks, block_out_channels, strict=True)):
            stride = 1 if stage == 0 and not strided_stem else 2
            bias = stage <= strided_stem
            layers.append(nn.Conv2d(width, stage_width, kernel_size=3, padding=1, stride=stride, bias=bias))
            if strided_stem and stage < 2:
                layers.append(ACTIVATIONS[act_fn]())
            width = stage_width
            gn = midblock_gn and stage == len(num_blocks) - 1
            layers += [AutoencoderTinyBlock(width, width, act_fn, gn) for _ in range(blocks)]
        layers.append(nn.Conv2d(width, out_channels, kernel_size=3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return _run(self.layers, (x + 1) / 2, self.gradient_checkpointing)


class DecoderTiny(nn.Module):
    """Latents, softly limited to -3..3, to images of about -1..1; every stage but the last doubles both sides."""

    gradient_checkpointing = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: Sequence[int],
        block_out_channels: Sequence[int],
        upsampling_scaling_factor: int,
        act_fn: str,
        upsample_fn: str,
        midblock_gn: bool = False,
    ) -> None:
        super().__init__()
        width = block_out_channels[0]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, kernel_size=3, padding=1), ACTIVATIONS[act_fn]()]
        for stage, blocks in enumerate(num_blocks):
            last = stage == len(num_blocks) - 1
            layers += [AutoencoderTinyBlock(width, width, act_fn, midblock_gn and stage == 0) for _ in range(blocks)]
            if not last:
                layers.append(nn.Upsample(scale_factor=upsampling_scaling_factor, mode=upsample_fn))
            next_width = out_channels if last else block_out_channels[stage + 1]
            layers.append(nn.Conv2d(width, next_width, kernel_size=3, padding=1, bias=last))
            width = next_width
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x / 3) * 3
        return _run(self.layers, x, self.gradient_checkpointing) * 2 - 1


class AutoencoderTiny(nn.Module):
    """TAESD-style autoencoder with diffusers' arguments and keys; images in -1..1, latents in the scaled convention.

    Stages may differ in width. Either `*_block_out_channels` may be None: half a model. `midblock_gn` adds TAEF2's
    GroupNorm branch to the blocks at latent resolution, `strided_stem` makes the encoder begin as TAESana's. `config`
    holds the arguments as given.

    With slicing, batches run image by image. With tiling, images run in overlapping tiles, which is approximate:
    `tile_sample_min_size` pixels or `tile_latent_min_size` cells wide, of which `tile_overlap_factor` is shared.
    """

    _supports_gradient_checkpointing = True
    latent_format: str | None = None  # whose latents it works on, a name in `latent_formats`; None: not known

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
        super().__init__()
        for half, widths, blocks in (
            ("encoder", encoder_block_out_channels, num_encoder_blocks),
            ("decoder", decoder_block_out_channels, num_decoder_blocks),
        ):
            if widths is not None and len(widths) != len(blocks):
                raise ValueError(f"`{half}_block_out_channels` should have the same length as `num_{half}_blocks`.")
        self.config: dict[str, Any] = arguments | {"block_out_channels": decoder_block_out_channels}
        self.latent_magnitude, self.latent_shift = latent_magnitude, latent_shift
        self.force_upcast, self.scaling_factor, self.shift_factor = force_upcast, scaling_factor, shift_factor
        self.use_slicing = self.use_tiling = False
        if encoder_block_out_channels is not None:
            widths = tuple(encoder_block_out_channels)
            self.encoder = EncoderTiny(
                in_channels, latent_channels, num_encoder_blocks, widths, act_fn, midblock_gn, strided_stem
            )
        if decoder_block_out_channels is not None:
            self.decoder = DecoderTiny(
                latent_channels,
                out_channels,
                num_decoder_blocks,
                tuple(decoder_block_out_channels),
                upsampling_scaling_factor,
                act_fn,
                upsample_fn,
                midblock_gn,
            )
        encoder_factor = 2 ** (len(num_encoder_blocks) - 1)
        decoder_factor = upsampling_scaling_factor ** (len(num_decoder_blocks) - 1)
        self._factors = {"encoder": encoder_factor, "decoder": decoder_factor}
        self.spatial_scale_factor = encoder_factor if decoder_block_out_channels is None else decoder_factor
        self.tile_overlap_factor = 0.125
        self.tile_sample_min_size = 512
        self.tile_latent_min_size = self.tile_sample_min_size // self.spatial_scale_factor

    def scale_latents(self, x: Tensor) -> Tensor:
        """Raw latents to 0..1; values outside +-latent_magnitude are cut."""
        return (x / (2 * self.latent_magnitude) + self.latent_shift).clamp(0, 1)

    def unscale_latents(self, x: Tensor) -> Tensor:
        """0..1 back to raw latents."""
        return (x - self.latent_shift) * (2 * self.latent_magnitude)

    def enable_slicing(self) -> None:
        """Run batches image by image."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Run batches at once."""
        self.use_slicing = False

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Run images in overlapping tiles; approximate."""
        self.use_tiling = use_tiling

    def disable_tiling(self) -> None:
        """Run images whole."""
        self.enable_tiling(False)

    def _set_gradient_checkpointing(self, module: nn.Module, value: bool = False) -> None:
        if isinstance(module, (EncoderTiny, DecoderTiny)):
            module.gradient_checkpointing = value

    def enable_gradient_checkpointing(self) -> None:
        """Train with less memory: blocks are computed again on the way back. Values and gradients stay the same."""
        for half in self.children():
            self._set_gradient_checkpointing(half, True)

    def disable_gradient_checkpointing(self) -> None:
        """Keep what the way back needs."""
        for half in self.children():
            self._set_gradient_checkpointing(half, False)

    def _run(self, half: str, x: Tensor) -> Tensor:
        if not hasattr(self, half):
            raise RuntimeError(f"autoencoder: expected a model with {half}, got half a model: load the other file too")
        if self.use_slicing and x.shape[0] > 1:
            return torch.cat([self._run_once(half, image) for image in x.split(1)])
        return self._run_once(half, x)

    def _run_once(self, half: str, x: Tensor) -> Tensor:
        network: Any = getattr(self, half)
        if not self.use_tiling:
            return network(x)
        factor = self._factors[half]
        cells = self.tile_sample_min_size // factor if half == "encoder" else self.tile_latent_min_size
        before, after = (factor, 1) if half == "encoder" else (1, factor)
        shared = int(cells * self.tile_overlap_factor)
        return run_in_tiles(network, x, cells=cells, shared=shared, before=before, after=after)

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
