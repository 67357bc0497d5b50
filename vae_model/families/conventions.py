"""What the latents of a family mean to the diffusion models that use it, and what only their names could tell.

Source of the numbers: the latent formats of the diffusion models, as ComfyUI and diffusers have them, read as facts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .config import Config, decode_factor
from .latent_formats import LATENT_FORMATS, formats_for
from .ldm.config import KLConfig
from .tiny.config import TinyConfig
from .wan.config import WanConfig


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


def _users(name: str, models: str | None = None) -> Users:
    one = LATENT_FORMATS[name]
    return Users(models or one.models, one.scale, one.shift)


USERS: dict[Shape, tuple[Users, ...]] = {
    Shape("kl", 4, 8, True): (_users("sd"), _users("sdxl")),
    Shape("kl", 16, 8): (_users("sd3"), _users("flux")),
    Shape("kl", 4, 4, True): (Users("Stable Diffusion x4-upscaler", 0.08333),),
    Shape("flux2", 128, 16): (_users("flux2"),),
    Shape("wan", 16, 8): (Users("Wan 2.1, Qwen-Image and relatives", 1.0, 0.0, _WAN_MEANS, _WAN_DEVIATIONS),),
    Shape("tiny", 4, 8): (_users("sd", "TAESD"), _users("sdxl", "TAESDXL")),
    Shape("tiny", 16, 8): (_users("sd3", "TAESD3"), _users("flux", "TAEF1")),
    Shape("tiny", 32, 8): (_users("flux2", "TAEF2, on the normalised latents of Flux.2"),),
}
"""Known users of latents of a shape. Where there are several, the weights do not tell which."""


def users_of(family: str, config: Config) -> tuple[Users, ...]:
    """Who is known to use such latents."""
    quant = family == "kl" and isinstance(config, KLConfig) and config.post_quant_conv
    return USERS.get(Shape(family, config.latent_channels, config.factor, quant), ())


def knows_raw(family: str, config: Config, hints: Mapping[str, str]) -> bool:
    """Whether `encode` gives raw latents: of a tiny VAE whose scale and shift are not known, its own instead."""
    if not isinstance(config, TinyConfig):
        return True
    told = config.latent_format is not None or not hints.keys().isdisjoint(("vae_scale", "vae_shift"))
    return told or (config.scaling_factor, config.shift_factor) != (1.0, 0.0) or len(users_of(family, config)) == 1


def is_flux2_tiny(family: str, config: Config) -> bool:
    """Whether this is a tiny VAE on the latents of Flux.2, whose own VAE has squares of their cells in its channels."""
    shape = Shape(family, config.latent_channels, config.factor)
    known = isinstance(config, TinyConfig) and config.latent_format in (None, "flux2")
    return known and shape == Shape("tiny", 32, 8)


def not_raw(config: Config) -> str:
    """What to say where it does not, in one line."""
    known = ", ".join(name for name in formats_for(config))
    return (
        "latents: expected a tiny VAE whose scale is known, got one that neither its file nor its name tells: its "
        f"latents are its own, not raw; say latent_format (--latent-format): {known}"
    )


def scale_and_shift(family: str, config: Config, hints: Mapping[str, str]) -> str:
    """Between raw latents and the diffusion model, or the tiny VAE itself: as told, else of the only known user."""
    if isinstance(config, TinyConfig):
        if config.latent_format is not None:
            models = LATENT_FORMATS[config.latent_format].models
            return f"{config.scaling_factor:g} and {config.shift_factor:g}, of {models}"
        if not hints.keys().isdisjoint(("vae_scale", "vae_shift")):
            return f"{config.scaling_factor:g} and {config.shift_factor:g}, from the file"
    elif "latents_mean" in hints and "latents_std" in hints:
        return f"per channel, means {hints['latents_mean']}, deviations {hints['latents_std']}, from config.json"
    elif "scaling_factor" in hints:
        shift = hints.get("shift_factor", "0")
        told = "as told" if "latent_format" in hints else "from config.json"
        return f"{hints['scaling_factor']} and {0 if shift == 'None' else shift}, {told}"
    users = users_of(family, config)
    if len(users) != 1:
        return "not known"
    one = users[0]
    if one.means:
        return f"per channel, means {list(one.means)}, deviations {list(one.deviations)}, of {one.models}"
    return f"{one.scale:g} and {one.shift:g}, of {one.models}"


def convention(config: Config) -> str:
    """What the latents are that `encode` returns and `decode` takes."""
    shape = f"(batch, {config.latent_channels}, height / {config.factor}, width / {config.factor})"
    if isinstance(config, TinyConfig):
        if decode_factor(config) != config.factor:
            shape = f"{shape}, decoded to {decode_factor(config)} pixels a cell"
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
    if isinstance(config, KLConfig) and not any(name.endswith("norm_num_groups") for name in hints):
        missing.append(f"groups of the norms, taken as {config.num_groups}")
    if isinstance(config, KLConfig) and config.patch > 1 and "batch_norm_eps" not in hints:
        missing.append(f"eps of the statistics, taken as {config.batch_norm_eps:g}")
    if isinstance(config, TinyConfig) and knows_raw(family, config, hints):
        return missing
    if not isinstance(config, TinyConfig) and not hints.keys().isdisjoint(("scaling_factor", "latents_mean")):
        return missing
    users = users_of(family, config)
    if len(users) == 1:
        return missing
    known = " or ".join(f"{one.models} ({one.scale:g}, {one.shift:g})" for one in users)
    if isinstance(config, TinyConfig):
        return [*missing, f"scale and shift, taken as 1 and 0{f'; of {known}' if known else ''}"]
    return [*missing, f"scale and shift of the diffusion model{f': {known}' if known else ''}"]
