"""The imitated comfy.sd.VAE: its attributes, methods, formulas and order of calls, written from their description.

Tiles are one pass of plain overlapping tiles without the host's three averaged passes: their only use here is to differ
from the untiled image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .host import StubHost


class StubVAE:
    """Both flavours; `host` is set on the class that `make_sd` returns."""

    host: StubHost
    pad_channel_value: Any = None

    def __init__(
        self, sd: Any = None, device: Any = None, config: Any = None, dtype: Any = None, metadata: Any = None
    ) -> None:
        """From a state dict that the package recognises, as the host makes one; `take_model` fills in the rest."""
        self.first_stage_model: Any = None
        if not sd:
            return
        from exact_vae.vae_model.checkpoint.load import load_model

        from .tree import use_host_layers

        loaded = load_model(sd, dtype=dtype or torch.float32)
        self.take_model(use_host_layers(loaded.model, self.host.modules["comfy.ops"]), dtype, loaded.config)

    def take_model(self, model: nn.Module, dtype: torch.dtype | None = None, config: Any = None) -> None:
        """Hold `model`, with the attributes of an image VAE of factor 8 and 4 channels or of `config`."""
        management = self.host.modules["comfy.model_management"]
        self.vae_dtype = dtype or torch.float32
        self.first_stage_model = model.to(self.vae_dtype)
        self.device = management.vae_device()
        self.output_device = management.intermediate_device()
        self.working_dtypes = [torch.bfloat16, torch.float32]
        self.latent_dim, self.latent_channels, self.output_channels = 2, getattr(config, "latent_channels", 4), 3
        self.downscale_ratio: Any = getattr(config, "factor", 8)
        self.upscale_ratio: Any = self.downscale_ratio
        self.downscale_index_formula = self.upscale_index_formula = None
        self.disable_offload, self.not_video, self.crop_input, self.extra_1d_channel = False, False, True, None
        self.process_input = lambda image: image * 2.0 - 1.0
        self.process_output = _output_in_place if self.host.new else _output_as_new
        self.memory_used_encode = lambda shape, dtype: 1767 * shape[2] * shape[3] * dtype.itemsize
        self.memory_used_decode = lambda shape, dtype: 2178 * shape[2] * shape[3] * 64 * dtype.itemsize
        patcher = self.host.modules["comfy.model_patcher"].ModelPatcher
        self.patcher = patcher(self.first_stage_model, self.device, management.vae_offload_device())

    # -- small questions -------------------------------------------------------------------------------------------

    def throw_exception_if_invalid(self) -> None:
        if self.first_stage_model is None:
            raise RuntimeError("the VAE is invalid: the checkpoint has none")

    def get_sd(self) -> Any:
        return self.first_stage_model.state_dict()

    def spacial_compression_decode(self) -> int:
        return self.upscale_ratio[-1] if isinstance(self.upscale_ratio, tuple) else self.upscale_ratio

    def spacial_compression_encode(self) -> int:
        return self.downscale_ratio[-1] if isinstance(self.downscale_ratio, tuple) else self.downscale_ratio

    def temporal_compression_decode(self) -> int | None:
        return round(self.upscale_ratio[0](8192) / 8192) if isinstance(self.upscale_ratio, tuple) else None

    def vae_encode_crop_pixels(self, pixels: Tensor) -> Tensor:
        if self.host.new:
            pixels = pixels[..., : self.output_channels]
            missing, value = self.output_channels - pixels.shape[-1], self.pad_channel_value
            if missing and value is not None:
                pixels = torch.cat([pixels, torch.full((*pixels.shape[:-1], missing), value)], dim=-1)
        if not self.crop_input:
            return pixels
        ratio = self.spacial_compression_encode()
        for axis in range(1, pixels.ndim - 1):
            spare = pixels.shape[axis] % ratio
            pixels = pixels.narrow(axis, spare // 2, pixels.shape[axis] - spare)
        return pixels

    # -- decode ----------------------------------------------------------------------------------------------------

    def decode(self, samples_in: Tensor, vae_options: dict[str, Any] | None = None) -> Tensor:
        self.host.calls.append("decode")
        self.throw_exception_if_invalid()
        z = samples_in[:, :, 0] if self.host.new and samples_in.ndim == 5 and self.latent_dim == 2 else samples_in
        try:
            return self._decode_whole(z, vae_options or {})
        except self.host.modules["comfy.model_management"].OOM_EXCEPTION:
            pass  # the tiles come outside the handler, so that the failed run's tensors are freed
        return self._finish(self._tiles(self._raw_decode, z, 64, 16, self.spacial_compression_decode(), 3))

    def _decode_whole(self, z: Tensor, vae_options: dict[str, Any]) -> Tensor:
        batch = self._reserve(self.memory_used_decode(z.shape, self.vae_dtype))
        images: list[Tensor] = []
        for chunk in z.split(batch):
            images.append(self._raw_decode(chunk, **vae_options))
        return self._finish(torch.cat(images))

    def _raw_decode(self, z: Tensor, **vae_options: Any) -> Tensor:
        return self.first_stage_model.decode(z.to(self.device, self.vae_dtype), **vae_options).float()

    def _finish(self, images: Tensor) -> Tensor:
        if self.host.new:
            images = images.to(self.vae_output_dtype())
            self.process_output(images)  # its result is dropped: it has to work in place
        else:
            images = self.process_output(images)
        return images.to(self.output_device).movedim(1, -1)

    def decode_tiled(
        self,
        samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        self.host.calls.append("decode_tiled")
        self.throw_exception_if_invalid()
        self._reserve(self.memory_used_decode(samples.shape, self.vae_dtype))
        if getattr(self, "handles_tiling", False):
            return self._finish(self.first_stage_model.decode_tiled(samples, tile_x=tile_x, tile_y=tile_y))
        factor = self.spacial_compression_decode()
        overlap = 16 if overlap is None else overlap
        return self._finish(self._tiles(self._raw_decode, samples, tile_x or 64, overlap, factor, 3))

    def decode_tiled_(self, samples: Tensor, tile_x: int = 64, tile_y: int = 64, overlap: int = 16) -> Tensor:
        self.host.calls.append("decode_tiled_")
        out = self._tiles(self._raw_decode, samples, tile_x, overlap, self.spacial_compression_decode(), 3)
        return self.process_output(out)

    # -- encode ----------------------------------------------------------------------------------------------------

    def encode(self, pixel_samples: Tensor) -> Tensor:
        self.host.calls.append("encode")
        self.throw_exception_if_invalid()
        x = self._pixels(pixel_samples)
        try:
            batch = self._reserve(self.memory_used_encode(x.shape, self.vae_dtype))
            z = torch.cat([self._raw_encode(chunk) for chunk in x.split(batch)]).to(self.output_device)
            return z.to(self.vae_output_dtype()) if self.host.new else z
        except self.host.modules["comfy.model_management"].OOM_EXCEPTION:
            pass
        return self._tiles(self._raw_encode, x, 512, 64, 1 / self.spacial_compression_encode(), self.latent_channels)

    def _raw_encode(self, x: Tensor) -> Tensor:
        return self.first_stage_model.encode(self.process_input(x).to(self.device, self.vae_dtype)).float()

    def _pixels(self, pixels: Tensor) -> Tensor:
        pixels = self.vae_encode_crop_pixels(pixels).movedim(-1, 1)
        if self.latent_dim == 3 and pixels.ndim < 5:
            pixels = pixels.unsqueeze(2) if self.not_video else pixels.movedim(1, 0).unsqueeze(0)
        return pixels

    def encode_tiled(
        self,
        pixel_samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        self.host.calls.append("encode_tiled")
        self.throw_exception_if_invalid()
        x = self._pixels(pixel_samples)
        self._reserve(self.memory_used_encode(x.shape, self.vae_dtype))
        if getattr(self, "handles_tiling", False):
            return self.first_stage_model.encode_tiled(self.process_input(x), tile_x=tile_x, tile_y=tile_y)
        scale, overlap = 1 / self.spacial_compression_encode(), 64 if overlap is None else overlap
        return self._tiles(self._raw_encode, x, tile_x or 512, overlap, scale, self.latent_channels)

    # -- shared ----------------------------------------------------------------------------------------------------

    def _reserve(self, memory_required: int) -> int:
        """Room for one image; how many fit at once."""
        management = self.host.modules["comfy.model_management"]
        management.load_models_gpu(
            [self.patcher], memory_required=memory_required, force_full_load=self.disable_offload
        )
        return max(1, int(management.get_free_memory(self.device) / max(1, memory_required)))

    def _tiles(self, run: Any, x: Tensor, tile: int, overlap: int, scale: float, channels: int) -> Tensor:
        """Overlapping square tiles, averaged where they meet: approximate."""
        if x.ndim != 4:
            return run(x)
        step = max(1, tile - overlap)
        height, width = (int(side * scale) for side in x.shape[2:])
        total, count = torch.zeros(len(x), channels, height, width), torch.zeros(1, 1, height, width)
        for top in range(0, x.shape[2], step):
            for left in range(0, x.shape[3], step):
                piece = run(x[:, :, top : top + tile, left : left + tile])
                rows, columns = (
                    slice(int(at * scale), int(at * scale) + n)
                    for at, n in zip((top, left), piece.shape[2:], strict=True)
                )
                total[:, :, rows, columns] += piece
                count[:, :, rows, columns] += 1
        return total / count


def _output_as_new(image: Tensor) -> Tensor:
    return torch.clamp((image + 1.0) / 2.0, min=0.0, max=1.0)


def _output_in_place(image: Tensor) -> Tensor:
    return image.add_(1.0).div_(2.0).clamp_(0.0, 1.0)
