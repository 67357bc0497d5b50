"""Qwen-Image 2.1's autoencoder as a family: images with alpha, nothing over frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ..latent_formats import Users
from ..layout import Layout
from ..wan.unit_family import UnitFamily
from .config import QwenImage21Config
from .latents import DEVIATIONS, MEANS
from .model import QwenImage21VAE
from .names import DIFFUSERS, WAN


class QwenImage21(UnitFamily):
    """Wan 2.2's network for images."""

    name = "qwen_image_21"
    title = "Qwen-Image 2.1 autoencoder"
    layouts: ClassVar[tuple[Layout, ...]] = (WAN, DIFFUSERS)
    fixed: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "attn_scales": ("[]",),
        "is_residual": ("True",),
        "patch_size": ("None", "1"),
    }
    users: ClassVar[Mapping[tuple[int, int], tuple[Users, ...]]] = {
        (64, 16): (Users("Qwen-Image 2.1", 1.0, 0.0, MEANS, DEVIATIONS),)
    }
    adds_alpha = True
    classes = frozenset({"QwenImage21VAE"})
    model_class = QwenImage21VAE
    config_class = QwenImage21Config
    diffusers_class = "AutoencoderKLQwenImage21"
