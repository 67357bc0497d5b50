"""Random small models of the families that are made of a configuration alone."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from exact_vae.vae_model.families.dc_ae.config import ACTIVATIONS, NORMS, DCConfig, DCLevels, Stage
from exact_vae.vae_model.families.hunyuan_image.config import HunyuanImageConfig
from exact_vae.vae_model.families.ldm.config import LevelsConfig
from exact_vae.vae_model.families.qwen_image_21.config import QwenImage21Config
from exact_vae.vae_model.families.taehv.config import ACTIVATIONS as TAEHV_ACTIVATIONS
from exact_vae.vae_model.families.taehv.config import TAEHVConfig, formats_of
from exact_vae.vae_model.families.wan22 import Wan22Config


def _parts(rng: Random, half: Callable[[], Any]) -> tuple[Any, Any]:
    """Encoder and decoder; now and then one of them alone."""
    return rng.choice([(half(), half()), (half(), half()), (half(), None), (None, half())])


def _valid(make: Callable[[], Any]) -> Any:
    """The first that belongs together."""
    while True:
        try:
            return make()
        except ValueError:
            continue


def _units(rng: Random, kind: type[Wan22Config] | type[QwenImage21Config], channels: int) -> Any:
    levels, blocks = rng.choice([2, 3]), 2

    def half() -> LevelsConfig:
        """What stands beside a level wants widths that fit."""
        width, inner = rng.choice([8, 16]), rng.choice([1, 2])
        return LevelsConfig(width, (width, *(width * inner if levels > 2 else width,) * (levels - 1)), blocks)

    over_time = tuple(bool(rng.randrange(2)) for _ in range(levels - 1))
    return kind(
        rng.choice([2, 4]), *_parts(rng, half), over_time=over_time, in_channels=channels, out_channels=channels
    )


def wan22(rng: Random) -> Wan22Config:
    return _units(rng, Wan22Config, 3)


def qwen_image_21(rng: Random) -> QwenImage21Config:
    return _units(rng, QwenImage21Config, rng.choice([3, 4]))


def hunyuan_image(rng: Random) -> HunyuanImageConfig:
    levels = rng.choice([2, 3])  # of one it is a KL autoencoder by all names and shapes

    def half() -> LevelsConfig:
        widths = tuple(rng.choice([32, 64]) for _ in range(levels))
        return LevelsConfig(widths[0], widths, rng.choice([1, 2]))

    return _valid(lambda: HunyuanImageConfig(rng.choice([4, 8]), *_parts(rng, half), out_channels=rng.choice([3, 4])))


def dc_ae(rng: Random) -> DCConfig:
    levels = rng.choice([2, 3])

    def stage(level: int) -> Stage:
        attends = level > 0 and bool(rng.randrange(2))
        options = {"norm": rng.choice(NORMS), "activation": rng.choice(ACTIVATIONS)}
        scales = rng.choice([(), (3,), (5,), (3, 5)]) if attends else ()
        return Stage(rng.choice([8, 16, 32]), rng.choice([0, 1, 1, 2]), attends, scales, **options)

    def half() -> DCLevels:
        stages = tuple(stage(level) for level in range(levels))
        if not any(one.blocks for one in stages):
            raise ValueError("nothing tells such a half")
        return DCLevels(stages, pixels=bool(rng.randrange(2)), shortcut=bool(rng.randrange(2)))

    def whole() -> DCConfig:
        options = {"in_channels": rng.choice([1, 3, 4]), "out_channels": rng.choice([1, 3, 4])}
        last = rng.choice(ACTIVATIONS)
        return DCConfig(
            rng.choice([2, 4]), *_parts(rng, lambda: _valid(half)), head_dim=8, last_activation=last, **options
        )

    return _valid(whole)


def taehv(rng: Random) -> TAEHVConfig:
    patch, channels = rng.choice([1, 2, 4]), rng.choice([4, 16, 48, 128])
    over_time = [rng.choice([True, False]) for _ in range(3)]
    widths = tuple(rng.choice([4, 8]) for _ in range(4))
    encoder, decoder = rng.choice([(8, widths), (4, widths), (8, None), (None, widths)])
    other = over_time if decoder is None or encoder is None else rng.sample(over_time, 3)
    return TAEHVConfig(
        *(channels, encoder, decoder, tuple(over_time[::-1]), tuple(other), patch),
        act_fn=rng.choice(TAEHV_ACTIVATIONS),
        latent_format=rng.choice([None, *formats_of(channels)]),
    )


NEWER: dict[str, Callable[[Random], Any]] = {
    "wan22": wan22,
    "qwen_image_21": qwen_image_21,
    "hunyuan_image": hunyuan_image,
    "dc_ae": dc_ae,
    "taehv": taehv,
}
