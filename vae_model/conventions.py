"""What the latents of a family mean to the diffusion models that use it, and what only their names could tell.

Source of the numbers: the latent formats of the diffusion models, as ComfyUI and diffusers have them, read as facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .config import Config, KLConfig, TinyConfig, WanConfig


class Users(NamedTuple):
    """Diffusion models, and between which numbers and the raw latents they convert: (latent - shift) * scale.

    Where `means` and `deviations` are given they hold one number for every channel: (latent - mean) / deviation.
    """

    models: str
    scale: float
    shift: float = 0.0
    means: tuple[float, ...] = ()
    deviations: tuple[float, ...] = ()


_WAN_MEANS = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
_WAN_DEVIATIONS = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)


class Shape(NamedTuple):
    """What a file tells about its latents."""

    family: str
    channels: int
    factor: int
    quant_conv: bool = False


USERS: dict[Shape, tuple[Users, ...]] = {
    Shape("kl", 4, 8, True): (Users("Stable Diffusion 1 and 2", 0.18215), Users("SDXL", 0.13025)),
    Shape("kl", 16, 8): (Users("Stable Diffusion 3", 1.5305, 0.0609), Users("Flux.1 and relatives", 0.3611, 0.1159)),
    Shape("kl", 4, 4, True): (Users("Stable Diffusion x4-upscaler", 0.08333),),
    Shape("flux2", 128, 16): (Users("Flux.2", 1.0),),
    Shape("wan", 16, 8): (Users("Wan 2.1, Qwen-Image and relatives", 1.0, 0.0, _WAN_MEANS, _WAN_DEVIATIONS),),
    Shape("tiny", 4, 8): (Users("TAESD", 0.18215), Users("TAESDXL", 0.13025)),
    Shape("tiny", 16, 8): (Users("TAESD3", 1.5305, 0.0609), Users("TAEF1", 0.3611, 0.1159)),
    Shape("tiny", 32, 8): (Users("TAEF2, on the normalised latents of Flux.2", 1.0),),
}
"""Known users of latents of a shape. Where there are several, the weights do not tell which."""


def users_of(family: str, config: Config) -> tuple[Users, ...]:
    """Who is known to use such latents."""
    quant = family == "kl" and isinstance(config, KLConfig) and config.post_quant_conv
    return USERS.get(Shape(family, config.latent_channels, config.factor, quant), ())


def convention(config: Config) -> str:
    """What the latents are that `encode` returns and `decode` takes."""
    shape = f"(batch, {config.latent_channels}, height / {config.factor}, width / {config.factor})"
    if isinstance(config, TinyConfig):
        return f"{shape}, raw; the network works on (latent - {config.shift_factor:g}) * {config.scaling_factor:g}"
    if isinstance(config, WanConfig):
        single = f"(batch, {config.latent_channels}, 1, height / {config.factor}, width / {config.factor})"
        return f"{single} of single frames, raw mean of the posterior"
    if config.patch > 1:
        return f"{shape}, squares of {config.patch} x {config.patch} in channels, normalised by the file's statistics"
    if config.codebook:
        return f"{shape}, raw, before the codebook; decoding takes the nearest of its {config.codebook} vectors"
    return f"{shape}, raw mean of the posterior" if config.double_z else f"{shape}, raw"


def untold(family: str, config: Config, hints: Mapping[str, str]) -> list[str]:
    """What neither weights nor header nor config.json tell, in sentences' parts."""
    missing: list[str] = []
    if isinstance(config, KLConfig) and "norm_num_groups" not in hints:
        missing.append(f"groups of the norms, taken as {config.num_groups}")
    if isinstance(config, KLConfig) and config.patch > 1 and "batch_norm_eps" not in hints:
        missing.append(f"eps of the statistics, taken as {config.batch_norm_eps:g}")
    if not hints.keys().isdisjoint(("scaling_factor", "vae_scale", "latents_mean")):
        return missing
    users = users_of(family, config)
    if len(users) == 1:
        return missing
    known = " or ".join(f"{one.models} ({one.scale:g}, {one.shift:g})" for one in users)
    if isinstance(config, TinyConfig):
        return [*missing, f"scale and shift, taken as 1 and 0{f'; of {known}' if known else ''}"]
    return [*missing, f"scale and shift of the diffusion model{f': {known}' if known else ''}"]
