"""What ComfyUI's VAE answers beyond decode and encode: packs that were written for that one work with ours, too.

Names, argument orders, layouts and units are those of `comfy/sd.py` in ComfyUI 0.3.64 to 0.38, read as facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from .checkpoint.load import LoadedModel
from .errors import InputError
from .families.table import FAMILIES
from .runs.checks import crop_centre
from .runs.run import dtype_of_results

if TYPE_CHECKING:
    from typing_extensions import Self

_MOVES = ("to", "cpu", "cuda", "half", "float", "double", "bfloat16")
"""How modules are moved and converted."""


class HostNames:
    """Base of `VAE`: the smaller names. Tiles of the "tiled" methods are strips here, so their results are exact."""

    def __new__(cls, loaded: Any = None, *args: Any, **options: Any) -> Self:
        """InputError where a VAE is to be made of a module, a file or else: Python would only count the arguments."""
        if not (loaded is None or isinstance(loaded, LoadedModel)):  # none when copied
            raise InputError(
                f"VAE: expected what load_model returns, got {type(loaded).__name__}: make it by load_vae, "
                "which takes files, state dicts and models"
            )
        return super().__new__(cls)

    def __repr__(self: Any) -> str:
        """The family, the latents and the numbers, such as VAE(ldm KL autoencoder, latents of 4 channels with 8 x 8
        pixels a cell, float32 on cpu)."""
        if "loaded" not in vars(self) or "vae_dtype" not in vars(self):  # while it is copied
            return f"<{type(self).__name__}>"
        parts = [half for half in ("encoder", "decoder") if hasattr(self.first_stage_model, half)]
        family = FAMILIES[self.loaded.family].title + (f", {parts[0]} alone" if len(parts) == 1 else "")
        whose, side = getattr(self.loaded.config, "latent_format", None), self.upscale_ratio
        latents = f"latents of {self.latent_channels} channels with {side} x {side} pixels a cell"
        latents += f", those of {whose}" if whose else ""
        dtype = str(self.vae_dtype).removeprefix("torch.")
        return f"{type(self).__name__}({family}, {latents}, {dtype} on {self.device})"

    if not TYPE_CHECKING:  # which would take every name for one that is there

        def __getattr__(self, name: str) -> Any:
            """No such attribute; of the ways to move a module, what a VAE has instead."""
            way = ": say device and dtype to load_vae, which loads it there" if name in _MOVES else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{way}", name=name, obj=self)

    working_dtypes: list[torch.dtype]
    """Dtypes that suit the model, the best first."""
    crop_input: bool = True
    """Whether images are cropped to whole latent cells; they always are."""
    disable_offload: bool = True
    """Whether the weights move as a whole; those of layers of ours always do."""
    handles_tiling: bool = False
    """Whether the model itself cuts tiles."""
    extra_1d_channel: int | None = None
    audio_sample_rate: int = 44100
    format_encoded: Any = None
    """None of these three: no model of sounds, and latents are returned as they are."""
    downscale_index_formula: tuple[int, int, int] | None = None
    upscale_index_formula: tuple[int, int, int] | None = None
    """Factors over time and both sides of a model of videos; this is none."""
    pad_channel_value: float | None = None
    """What a missing alpha channel is filled with; None: it may not be missing."""
    size: int | None = None
    """Bytes of the weights once `model_size` has counted them."""

    def spacial_compression_decode(self: Any) -> int:
        """Pixels along one side of a latent cell."""
        return self.upscale_ratio

    def spacial_compression_encode(self: Any) -> int:
        """Pixels along one side of a latent cell."""
        return self.downscale_ratio

    def temporal_compression_decode(self: Any) -> int | None:
        """Frames of a clip per frame of its latents; None of a model of pictures."""
        return self.time_factor if self.latent_dim == 3 else None

    def get_sd(self: Any) -> dict[str, Tensor]:
        """The weights under our names (the first publication's)."""
        return self.first_stage_model.state_dict()

    def throw_exception_if_invalid(self) -> None:
        """RuntimeError where no model is loaded."""
        if getattr(self, "first_stage_model", None) is None:
            raise RuntimeError("VAE: expected a loaded model, got none: load a VAE file")

    def model_size(self) -> int:
        """Bytes of the weights."""
        if self.size is None:
            self.size = sum(tensor.nbytes for tensor in self.get_sd().values())
        return self.size

    def get_ram_usage(self) -> int:
        """Bytes of the weights."""
        return self.model_size()

    def is_dynamic(self: Any) -> bool:
        """Whether the host loads the weights piece by piece."""
        ask = getattr(self.patcher, "is_dynamic", None)
        return bool(ask is not None and ask())

    def vae_output_dtype(self: Any) -> torch.dtype:
        """The dtype of images and latents that are returned."""
        return dtype_of_results(self.vae_dtype)

    def prepare_decode(self: Any, sample_shape: tuple[int, ...], memory_required: int | None = None) -> int:
        """Load the model, for callers that then run it themselves; how many such items fit beside it at once."""
        estimate = self.memory_used_decode(sample_shape, self.vae_dtype) if memory_required is None else memory_required
        needed = max(1, int(estimate))
        self.host.load_model(self.first_stage_model, self.device, needed)
        return max(1, self.host.get_free_memory(self.device) // needed)

    def vae_encode_crop_pixels(self: Any, pixels: Tensor) -> Tensor:
        """Images (..., H, W, C) cropped centrally to whole latent cells, with the model's number of channels."""
        pixels = add_alpha(pixels, self.input_channels, self.pad_channel_value)[..., : self.input_channels]
        images = crop_centre(pixels.reshape(-1, *pixels.shape[-3:]), self.downscale_ratio)
        return images.reshape(*pixels.shape[:-3], *images.shape[1:])

    # -- the host's inner methods: tensors with the channels second ------------------------------------------------

    def decode_tiled_(self: Any, samples: Tensor, tile_x: int = 64, tile_y: int = 64, overlap: int = 16) -> Tensor:
        """(B, c, h, w) -> (B, C, H, W), 0..1."""
        return self.decode_tiled(samples, tile_x, tile_y, overlap).movedim(-1, 1)

    def decode_tiled_3d(
        self: Any, samples: Tensor, tile_t: int = 999, tile_x: int = 32, tile_y: int = 32, overlap: Any = (1, 8, 8)
    ) -> Tensor:
        """(B, c, T, h, w) -> (B, C, F, H, W), 0..1."""
        images = self.decode_tiled(samples, tile_x, tile_y)
        return (images if images.ndim == 5 else images[:, None]).movedim(-1, 1)

    def decode_tiled_1d(self, samples: Tensor, tile_x: int = 256, overlap: int = 32) -> Tensor:
        """InputError: sounds are not for this VAE."""
        raise _no_sounds("latents", samples)

    def encode_tiled_(
        self: Any, pixel_samples: Tensor, tile_x: int = 512, tile_y: int = 512, overlap: int = 64
    ) -> Tensor:
        """(B, C, H, W), 0..1 -> (B, c, h, w)."""
        z = self.encode(pixel_samples.movedim(1, -1), tile_size=min(tile_x, tile_y), not_video=True)
        return z[:, :, 0] if z.ndim == 5 else z

    def encode_tiled_3d(
        self: Any,
        pixel_samples: Tensor,
        tile_t: int = 9999,
        tile_x: int = 512,
        tile_y: int = 512,
        overlap: Any = (1, 64, 64),
    ) -> Tensor:
        """(B, C, F, H, W), 0..1 -> (B, c, T, h, w)."""
        z = self.encode(pixel_samples.movedim(1, -1), tile_size=min(tile_x, tile_y), not_video=True)
        return z if z.ndim == 5 else z.unsqueeze(2)

    def encode_tiled_1d(self, samples: Tensor, tile_x: int = 256 * 2048, overlap: int = 64 * 2048) -> Tensor:
        """InputError: sounds are not for this VAE."""
        raise _no_sounds("pixels", samples)


def add_alpha(pixels: Any, channels: int, value: float | None) -> Any:
    """Images (..., C) of which only the last of so many channels is missing with it made of `value`."""
    if value is None or not isinstance(pixels, Tensor) or pixels.ndim == 0 or pixels.shape[-1] != channels - 1:
        return pixels
    return functional.pad(pixels, (0, 1), value=value)


def take_vae_options(method: Any, options: Any, timesteps: int | None) -> tuple[Any, int | None]:
    """The method and the frames of a group, where ComfyUI's `vae_options` came by name or in the method's place."""
    if method is None or isinstance(method, Mapping):
        method, options = "exact", options if method is None else method
    if options is not None and not isinstance(options, Mapping):
        raise InputError(f"vae_options: expected a mapping or nothing, got {options!r}: leave it out")
    unknown = sorted(set(options or {}) - {"timesteps"}, key=str)
    if unknown:
        raise InputError(
            f"vae_options: expected timesteps or nothing, got {', '.join(map(str, unknown))}: leave it out"
        )
    return method, timesteps if options is None else options.get("timesteps", timesteps)


def take_not_video(method: Any, not_video: Any) -> tuple[Any, bool | None]:
    """The method and ComfyUI's `not_video`, which may have come in the method's place."""
    if method is None or isinstance(method, bool):
        method, not_video = "exact", not_video if method is None else method
    if not (not_video is None or isinstance(not_video, bool)):
        raise InputError(f"not_video: expected True, False or nothing, got {not_video!r}: leave it out")
    return method, not_video


def _no_sounds(what: str, x: Tensor) -> InputError:
    return InputError(f"{what}: expected images, got sounds of shape {tuple(x.shape)}: use the VAE of that model")
