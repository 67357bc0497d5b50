"""From a flavour to the modules of an imitated host, and VAEs of every kind in it."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .host import StubHost
from .management import make_management, make_prefetch
from .operations import make_ops
from .patcher import make_patcher
from .surroundings import make_execution, make_execution_progress, make_folder_paths, make_server, make_utils
from .tree import KINDS, build
from .vae import StubVAE


class NewVAE(StubVAE):
    """With what newer versions add."""

    handles_tiling = False
    format_encoded: Any = None
    size: int | None = None

    def encode(self, pixel_samples: Tensor, not_video: bool | None = None) -> Tensor:
        self.not_video = self.not_video if not_video is None else not_video
        return super().encode(pixel_samples)

    def encode_tiled(self, pixel_samples: Tensor, *arguments: Any, not_video: bool | None = None, **named: Any) -> Any:
        self.not_video = self.not_video if not_video is None else not_video
        return super().encode_tiled(pixel_samples, *arguments, **named)

    def model_size(self) -> int:
        return self.patcher.model_size()

    def is_dynamic(self) -> bool:
        return self.patcher.is_dynamic()

    def vae_output_dtype(self) -> torch.dtype:
        return self.host.modules["comfy.model_management"].intermediate_dtype()

    def prepare_decode(self, shape: Any, memory_required: int | None = None) -> int:
        needed = self.memory_used_decode(shape, self.vae_dtype) if memory_required is None else memory_required
        return self._reserve(needed)


class NestedTensor:
    """Several latents in one, as newer hosts pass for joint models: decoders take the first."""

    is_nested = True

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors

    @property
    def shape(self) -> torch.Size:
        return self.tensors[0].shape

    def unbind(self) -> list[Tensor]:
        return self.tensors


def make_host(new: bool) -> StubHost:
    """The host with all its modules, none of them registered yet."""
    host = StubHost(new)
    comfy: Any = ModuleType("comfy")
    comfy.__path__ = []
    execution: Any = ModuleType("comfy_execution")
    execution.__path__ = []
    execution.utils = make_execution(host)
    sd: Any = ModuleType("comfy.sd")
    sd.VAE = type("VAE", (NewVAE if new else StubVAE,), {"host": host, "__module__": "comfy.sd"})
    parts = {"model_management": make_management(host), "ops": make_ops(host), "utils": make_utils(host)}
    parts.update(model_patcher=make_patcher(host), sd=sd)
    if new:
        parts["model_prefetch"] = make_prefetch(host)
    for name, module in parts.items():
        setattr(comfy, name, module)
        host.modules[f"comfy.{name}"] = module
    host.modules.update(
        {
            "comfy": comfy,
            "comfy_execution": execution,
            "comfy_execution.utils": execution.utils,
            "comfy_execution.progress": make_execution_progress(host),
            "server": make_server(host),
            "folder_paths": make_folder_paths(host),
        }
    )
    host.make_vae = lambda kind="kl", **options: _make_vae(host, kind, **options)
    return host


def _make_vae(
    host: StubHost,
    kind: str = "kl",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    cast: bool = False,
    patched: bool = False,
) -> Any:
    """A VAE of the host. `kind` is one of tree.KINDS, or "invalid" for what a checkpoint without a VAE gives."""
    vae = host.modules["comfy.sd"].VAE()
    if kind == "invalid":
        return vae
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {KINDS}, got {kind!r}")
    vae.take_model(build(kind, host.modules["comfy.ops"], seed=seed, cast=cast, patched=patched), dtype)
    if kind == "taef2":
        vae.latent_channels = 32  # both ratios stay at 8, as the host leaves them
    if kind == "pixel_space":
        vae.latent_channels, vae.downscale_ratio, vae.upscale_ratio = 3, 1, 1
    if kind == "video":
        vae.latent_dim, vae.latent_channels = 3, 16
        vae.upscale_ratio = (lambda frames: max(0, frames * 4 - 3), 8, 8)
        vae.downscale_ratio = (lambda frames: max(0, (frames + 3) // 4), 8, 8)
        vae.upscale_index_formula = vae.downscale_index_formula = (4, 8, 8)
        vae.memory_used_decode = lambda shape, dtype: 7000 * shape[3] * shape[4] * 64 * dtype.itemsize
        vae.memory_used_encode = lambda shape, dtype: 6000 * shape[3] * shape[4] * dtype.itemsize
    if kind == "self_tiling":
        vae.handles_tiling = True
    return vae
