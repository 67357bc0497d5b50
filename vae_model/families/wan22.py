"""Wan 2.2's autoencoder (TI2V-5B) as a family: 48 channels of 16x16 pixels and four frames each.

Its network is in `wan/unit_*.py`; of it this is the form that sees three frames and squares of 2x2 pixels.
Source: Wan-Video Wan2.2 `wan/modules/vae2_2.py` and diffusers `AutoencoderKLWan` (Apache-2.0); the numbers of its
latents are facts of the former.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .family import latent_shape
from .hints import Hints
from .latent_formats import Users
from .layout import Layout
from .wan.unit_config import UnitConfig
from .wan.unit_family import UnitFamily
from .wan.unit_model import UnitVAE
from .wan.unit_names import UNIT_DIFFUSERS_MARKS, UNIT_DIFFUSERS_RULES, UNIT_MARKS, UNIT_RULES, taps

_MEANS = (
    *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
    *(-0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825),
    *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
    *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230),
    *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748),
    *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
)
_DEVIATIONS = (
    *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013),
    *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
    *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
    *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
    *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
    *(0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
)


@dataclass(frozen=True)
class Wan22Config(UnitConfig):
    """Of pictures and clips."""

    taps: ClassVar[int] = 3
    patch: ClassVar[int] = 2


class Wan22VAE(UnitVAE):
    """Of pictures and clips."""


class Wan22(UnitFamily):
    """Causal in time. A single frame is a picture."""

    name = "wan22"
    title = "Wan 2.2 autoencoder"
    layouts: ClassVar[tuple[Layout, ...]] = (
        Layout(
            *("wan", "wan22", UNIT_MARKS, UNIT_RULES),
            unread="told",
            sides=lambda shapes: taps(shapes, "conv1") <= {3},
            instead_of=("wan",),
        ),
        Layout(
            *("diffusers", "wan22", UNIT_DIFFUSERS_MARKS, UNIT_DIFFUSERS_RULES),
            sides=lambda shapes: taps(shapes, "conv_in") == {3},
            instead_of=("wan",),
        ),
    )
    fixed: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "attn_scales": ("[]",),
        "is_residual": ("True",),
        "patch_size": ("2",),
    }
    users: ClassVar[Mapping[tuple[int, int], tuple[Users, ...]]] = {
        (48, 16): (Users("Wan 2.2 TI2V-5B", 1.0, 0.0, _MEANS, _DEVIATIONS),)
    }
    has_frames = True
    classes = frozenset({"Wan22VAE"})
    model_class = Wan22VAE
    config_class = Wan22Config
    diffusers_class = "AutoencoderKLWan"

    def diffusers_config(self, config: UnitConfig, hints: Hints) -> dict[str, Any]:
        """With the numbers of its latents, for the class takes Wan 2.1's where none are told."""
        fields = super().diffusers_config(config, hints)
        for one in self.users_of(config):
            fields |= {"latents_mean": list(one.means), "latents_std": list(one.deviations)}
        return fields

    def formats(self, config: Any) -> list[str]:
        return ["raw"]  # theirs have numbers for each channel

    def convention(self, config: Any) -> str:
        frames = f" (frames - 1) / {config.time_factor} + 1,"
        return f"{latent_shape(config, frames)}, raw mean of the posterior"

    def time_factor(self, config: Any) -> int:
        return config.time_factor
