"""A VAE of ours inside ComfyUI: what the host's nodes change of it, its patcher and devices, counts at the next run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..vae_model.checkpoint.load import LoadedModel
from ..vae_model.vae import VAE
from . import comfy_host
from .comfy_host import ComfyHost


class HostedVAE(VAE):
    """Nodes of the host clone `patcher`, patch the clone and put it here, on this object or on a shallow copy."""

    def __init__(  # pyright: ignore[reportInconsistentConstructor]
        self, loaded: LoadedModel, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.patcher = comfy_host.new_patcher(loaded.model, device)
        output_device = comfy_host.intermediate_device()
        super().__init__(loaded, self._new_host(), device=device, dtype=dtype, output_device=output_device)
        self.not_video = False  # as the host's own VAEs take a batch

    @property
    def host(self) -> ComfyHost:
        """The host's memory, weights and progress, by the patcher that is here now."""
        if self._host.patcher is not self.patcher:
            self._host = self._new_host()
        return self._host

    def _new_host(self) -> ComfyHost:
        # Layers of ours are moved as a whole: the host casts and offloads only its own one by one.
        return ComfyHost(self.patcher, full_load=True)

    def vae_output_dtype(self) -> torch.dtype:
        """What the host wants between nodes."""
        return comfy_host.output_dtype()

    def decode(self, *args: Any, **options: Any) -> Tensor:
        """As VAE's, in the host's dtype; `samples_in` is the host's word for `samples`."""
        return super().decode(*args, **_named(options, "samples_in", "samples")).to(self.vae_output_dtype())

    def encode(self, *args: Any, **options: Any) -> Tensor:
        """As VAE's, in the host's dtype; `pixel_samples` is the host's word for `pixels`."""
        return super().encode(*args, **_named(options, "pixel_samples", "pixels")).to(self.vae_output_dtype())


def _named(options: dict[str, Any], theirs: str, ours: str) -> dict[str, Any]:
    """With our name for an argument."""
    return {ours if name == theirs else name: value for name, value in options.items()}
